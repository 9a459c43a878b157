"""API keys as the rest of the house sees them: who is calling and what they may do. The secret itself
never gets here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """What a key may be used for. `admin` includes the other two."""

    PREDICT = "predict"
    READ = "read"
    ADMIN = "admin"


MINUTE_SECONDS = 60
DAY_SECONDS = 86400

MAX_LIFETIME_DAYS = 36_500
MAX_OVERLAP_HOURS = 8_760
"""A hundred years and one: what is farther off is a slip, and soon no date that a calendar has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a key may use; None: as much as there is. A key that was rotated shares it with its successor.

    A pixel-step is one pixel in one denoising step of one image. Days are those of UTC. Open runs are the queued and
    the running ones. `weight` is the key's share of a busy device beside other keys of its `priority`; whoever has a
    higher one goes first.
    """

    requests_per_minute: int | None = None
    pixel_steps_per_minute: int | None = None
    images_per_day: int | None = None
    max_queued_runs: int | None = None
    max_open_runs: int | None = None
    weight: float = 1.0
    priority: int = 0

    @property
    def has_limits(self) -> bool:
        """Whether anything has to be counted for it."""
        return self.has_quotas or self.max_queued_runs is not None or self.max_open_runs is not None

    @property
    def has_quotas(self) -> bool:
        """Whether it has limits that come back with time."""
        quotas = (self.requests_per_minute, self.pixel_steps_per_minute, self.images_per_day)
        return any(quota is not None for quota in quotas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a key has used at `at`: in the minute before, since midnight (images), and what is open.

    `oldest_at` is the first request of that minute.
    """

    at: float
    num_requests: int = 0
    pixel_steps: int = 0
    oldest_at: float | None = None
    num_images: int = 0
    num_queued: int = 0
    num_open: int = 0

    @property
    def seconds_to_midnight(self) -> float:
        return DAY_SECONDS - self.at % DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands with one of its quotas: how much is left, and in how many seconds some of it comes back."""

    name: str
    quota: int
    window_seconds: int
    num_left: int
    reset_seconds: float


def standings(allowance: Allowance, spending: Spending) -> tuple[Standing, ...]:
    """How a key with this allowance stands after this spending, quota by quota."""
    in_window = MINUTE_SECONDS if spending.oldest_at is None else spending.oldest_at + MINUTE_SECONDS - spending.at
    quotas = (
        ("requests", allowance.requests_per_minute, MINUTE_SECONDS, spending.num_requests, in_window),
        ("pixel-steps", allowance.pixel_steps_per_minute, MINUTE_SECONDS, spending.pixel_steps, in_window),
        ("images", allowance.images_per_day, DAY_SECONDS, spending.num_images, spending.seconds_to_midnight),
    )
    return tuple(
        Standing(name, quota, window, max(0, quota - spent), max(0.0, reset))
        for name, quota, window, spent, reset in quotas
        if quota is not None
    )


def seconds_to_room(uses: Sequence[tuple[float, int]], *, to_free: int, at: float) -> float:
    """When enough of the last minute's uses, each with its time and amount, oldest first, are a minute old."""
    for used_at, amount in uses:
        to_free -= amount
        if to_free <= 0:
            return max(0.0, used_at + MINUTE_SECONDS - at)
    return float(MINUTE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What came of one key's requests to one deployment: runs, finished images, device time."""

    key_id: str
    key: str
    project: str
    deployment: str
    num_runs: int = 0
    num_images: int = 0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One API key without its secret. `prefix` is its public beginning; times are on the database's clock."""

    id: str
    name: str
    prefix: str
    project: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    allowance: Allowance = field(default_factory=Allowance)

    def has_scope(self, scope: Scope) -> bool:
        """Whether the key was given `scope`, itself or through `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes
