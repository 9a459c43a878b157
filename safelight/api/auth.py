"""Who is asking: the Authorization header to a Key, remembered for seconds only, and the scopes a route asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from hashlib import sha256

from safelight.errors import Forbidden, Unauthorized
from safelight.keys import Key, Scope
from safelight.store.keys import Keys

log = logging.getLogger("safelight.api")

CACHE_SECONDS = 4.0
"""How long an accepted key is not looked up again. A revoked key must be refused within 5 s."""

TOUCH_SECONDS = 60.0

_MAX_CACHED = 1024


class KeyRing:
    """Authenticates callers. Only accepted keys are remembered, under a digest: a new key works at once."""

    def __init__(
        self,
        keys: Keys,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._monotonic = monotonic
        self._now = now
        self._accepted: dict[bytes, tuple[Key, float]] = {}
        self._touched: dict[str, float] = {}
        self._touching: set[asyncio.Task[None]] = set()

    async def authenticate(self, header: str | None) -> Key:
        """The key named by an Authorization header: the bare key, or `Bearer <key>`. Raises Unauthorized."""
        secret = read_secret(header)
        name = sha256(secret.encode()).digest()
        key, until = self._accepted.get(name, (None, 0.0))
        if key is None or self._monotonic() >= until or _has_expired(key, self._now()):
            self._accepted.pop(name, None)
            asked_at = self._monotonic()
            key = await self._keys.authenticate(secret)
            self._remember(name, key, asked_at)
        self._touch(key)
        return key

    async def close(self) -> None:
        """Wait for the last writes of `last_used_at`."""
        await asyncio.gather(*self._touching, return_exceptions=True)

    def _remember(self, name: bytes, key: Key, asked_at: float) -> None:
        if len(self._accepted) >= _MAX_CACHED:
            self._accepted.clear()
        self._accepted[name] = (key, asked_at + CACHE_SECONDS)

    def _touch(self, key: Key) -> None:
        if self._monotonic() - self._touched.get(key.id, -TOUCH_SECONDS) < TOUCH_SECONDS:
            return
        self._touched[key.id] = self._monotonic()
        task = asyncio.create_task(self._write_touch(key.id))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _write_touch(self, key_id: str) -> None:
        try:
            await self._keys.touch(key_id)
        except Exception:
            # When a key was last used is a convenience; no request may fail for it.
            log.warning("the last use of a key could not be written", exc_info=True)


def read_secret(header: str | None) -> str:
    """The key in an Authorization header. Raises Unauthorized when there is none."""
    value = (header or "").strip()
    scheme, _, rest = value.partition(" ")
    secret = rest.strip() if scheme.lower() == "bearer" else value
    if not secret:
        raise Unauthorized("send a key: `Authorization: <key>` or `Authorization: Bearer <key>`")
    return secret


def check_scope(key: Key, *wanted: Scope) -> None:
    """Raises Forbidden unless `key` has one of `wanted`. `admin` has both."""
    if any(key.has_scope(scope) for scope in wanted):
        return
    names = " or ".join(f"`{scope.value}`" for scope in wanted)
    raise Forbidden(f"this key does not have the scope {names}; use one that has it")


def _has_expired(key: Key, now: float) -> bool:
    return key.expires_at is not None and key.expires_at <= now
