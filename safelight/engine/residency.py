"""Which models are on the device, which wait in host memory, and who goes when another needs room. Pure: no
clock, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from safelight.errors import ModelError

STAY = 4.0
"""A model in use is not sent away before it was there for this many times as long as it took to bring it: with runs of
two models by turns, the device spends most of its time on drawing."""

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 600.0


class Place(StrEnum):
    DEVICE = "device"
    HOST = "host"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Move:
    """Take the model from where it is to `to`."""

    key: str
    to: Place


@dataclass(frozen=True, slots=True)
class Plan:
    """`moves`, in this order, make the room.

    Where `waits_for` names models, there is no plan yet: their runs have to end first, and none of theirs may begin
    once `patience_seconds` are over.
    """

    moves: tuple[Move, ...] = ()
    waits_for: frozenset[str] = frozenset()
    patience_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Resident:
    key: str
    num_bytes: int
    is_pinned: bool
    cooldown_seconds: float
    came_at: float
    used_at: float
    load_seconds: float
    place: Place = Place.DEVICE
    is_retired: bool = False

    @property
    def is_movable(self) -> bool:
        return self.place is Place.DEVICE and not self.is_pinned


class Residency:
    """The models of one device under a budget of bytes, and those kept in `host_bytes` of host memory (on a CPU none).

    The least recently used goes first. A pinned model stays, and a model in use is never moved.
    """

    def __init__(self, *, device_bytes: int, host_bytes: int = 0) -> None:
        self._device_bytes = device_bytes
        self._host_bytes = host_bytes
        self._residents: dict[str, _Resident] = {}
        self._num_users: Counter[str] = Counter()

    def place_of(self, key: str) -> Place:
        resident = self._residents.get(key)
        return Place.NOWHERE if resident is None else resident.place

    def settle(
        self,
        key: str,
        num_bytes: int,
        *,
        now: float,
        load_seconds: float = 0.0,
        is_pinned: bool = False,
        cooldown_seconds: float = 0.0,
    ) -> None:
        """The model is on the device now. `cooldown_seconds` 0: it may be idle for ever."""
        self._residents[key] = _Resident(
            key=key,
            num_bytes=num_bytes,
            is_pinned=is_pinned,
            cooldown_seconds=cooldown_seconds,
            came_at=now,
            used_at=now,
            load_seconds=load_seconds,
        )

    def note_compiled(self, key: str, seconds: float) -> None:
        """What it took beside loading it: as much more to do again, should it leave."""
        self._residents[key].load_seconds += seconds

    def begin_use(self, key: str, now: float) -> None:
        """A run of the model begins, or waits for it to be brought: once there it must not be moved
        before that run drew."""
        self._num_users[key] += 1
        self._note_use(key, now)

    def end_use(self, key: str, now: float) -> None:
        """A run of the model has ended."""
        assert self._num_users[key] > 0, "an end has a beginning"
        self._num_users[key] -= 1
        self._note_use(key, now)

    def retire(self, key: str) -> None:
        """Nobody will ask for the model again: it goes as soon as it is idle. Unknown keys are ignored."""
        if key in self._residents:
            self._residents[key].is_retired = True
            self._residents[key].is_pinned = False

    def carried_out(self, move: Move) -> None:
        """The model is where the move brought it."""
        resident = self._residents[move.key]
        is_in_use = resident.place is Place.DEVICE and not self._is_idle(resident)
        assert not is_in_use, "a model in use is never moved"
        resident.place = move.to
        if move.to is Place.NOWHERE:
            del self._residents[move.key]

    def plan(self, key: str, num_bytes: int, *, now: float) -> Plan:
        """How to get `num_bytes` free on the device for `key`. Raises ModelError where that can never be."""
        missing = num_bytes - (self._device_bytes - self._used())
        going: list[_Resident] = []
        for resident in self._in_order_of_leaving():
            if missing <= 0:
                break
            going.append(resident)
            missing -= resident.num_bytes
        if missing > 0:
            raise ModelError(self._no_room_message(num_bytes))
        busy = [resident for resident in going if not self._is_idle(resident)]
        if busy:
            free_at = max(resident.came_at + STAY * resident.load_seconds for resident in busy)
            return Plan(waits_for=frozenset(each.key for each in busy), patience_seconds=max(0.0, free_at - now))
        return Plan(moves=tuple(self._moves_of(going, coming=key)))

    def cooled(self, now: float) -> tuple[Move, ...]:
        """Models that were idle for their cooldown, and retired ones: they are dropped."""
        return tuple(
            Move(each.key, Place.NOWHERE)
            for each in self._residents.values()
            if self._is_idle(each) and self._cooled_at(each) <= now
        )

    def _note_use(self, key: str, now: float) -> None:
        if key in self._residents:
            self._residents[key].used_at = now

    def _is_idle(self, resident: _Resident) -> bool:
        return not self._num_users[resident.key]

    def _cooled_at(self, resident: _Resident) -> float:
        if resident.is_retired:
            return 0.0
        if resident.is_pinned or not resident.cooldown_seconds:
            return float("inf")
        return resident.used_at + resident.cooldown_seconds

    def _used(self) -> int:
        return sum(each.num_bytes for each in self._residents.values() if each.place is Place.DEVICE)

    def _in_order_of_leaving(self) -> Iterator[_Resident]:
        """Idle ones first, the least recently used of them first; then those in use, who was there longest first."""
        movable = [each for each in self._residents.values() if each.is_movable]
        idle = (each for each in movable if self._is_idle(each))
        busy = (each for each in movable if not self._is_idle(each))
        yield from sorted(idle, key=lambda each: each.used_at)
        yield from sorted(busy, key=lambda each: each.came_at)

    def _moves_of(self, going: Iterable[_Resident], *, coming: str) -> Iterator[Move]:
        """To host memory as far as that has room for them, at the cost of those that have lain there longest.

        The place of the one that comes from there counts as free: for the length of the swap both are in it.
        """
        on_host = (each for each in self._residents.values() if each.place is Place.HOST and each.key != coming)
        kept = sorted(on_host, key=lambda each: each.used_at)
        used = sum(each.num_bytes for each in kept)
        for resident in going:
            if resident.num_bytes > self._host_bytes:
                yield Move(resident.key, Place.NOWHERE)
                continue
            while used + resident.num_bytes > self._host_bytes:
                dropped = kept.pop(0)
                used -= dropped.num_bytes
                yield Move(dropped.key, Place.NOWHERE)
            kept.append(resident)
            used += resident.num_bytes
            yield Move(resident.key, Place.HOST)

    def _no_room_message(self, num_bytes: int) -> str:
        pinned = sum(each.num_bytes for each in self._residents.values() if each.is_pinned)
        held = f", of which pinned deployments hold {_in_mb(pinned)}" if pinned else ""
        remedy = "unpin one, or " if pinned else ""
        return (
            f"the model needs {_in_mb(num_bytes)} and models may have {_in_mb(self._device_bytes)} of this device{held}"
            f"; {remedy}raise engine.model_memory_mb, or serve it on a device with more memory"
        )


@dataclass(slots=True)
class _Failure:
    reason: str
    num_failures: int
    retry_at: float


class Failures:
    """Models that could not be loaded, and when each may be tried again: later each time."""

    def __init__(self) -> None:
        self._failed: dict[str, _Failure] = {}

    def record(self, key: str, reason: str, now: float) -> None:
        num = 1 + (self._failed[key].num_failures if key in self._failed else 0)
        wait = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** (num - 1))
        self._failed[key] = _Failure(reason, num, now + wait)

    def forget(self, key: str) -> None:
        """It was loaded."""
        self._failed.pop(key, None)

    def check(self, key: str, now: float) -> None:
        """Raises ModelError, with the reason of the last try, until it is time for the next."""
        failure = self._failed.get(key)
        if failure is not None and now < failure.retry_at:
            raise ModelError(f"{failure.reason}; it is tried again in {failure.retry_at - now:.0f} s")


def _in_mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
