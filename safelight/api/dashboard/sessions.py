"""Who looks at the dashboard: a signed cookie that names an admin key, and is worth nothing once that key is."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import Response

from safelight.api.middleware import LOOPBACK_NAMES
from safelight.errors import Forbidden, NotFound, Unauthorized
from safelight.keys import Key, Scope
from safelight.store.keys import Keys

SESSION_SECONDS = 12 * 3600
RENEW_SECONDS = 3600
"""A session that is this old gets a fresh cookie with the next page, so that only an idle one ends."""

LOOKUP_SECONDS = 4.0
"""How long a key is not looked up again. A revoked one must be out within 5 s."""

_MAX_REMEMBERED = 256
_TOKEN = re.compile(r"(?P<key_id>[0-9a-f-]{36})\.(?P<issued_at>[0-9]{1,12})\.(?P<mac>[0-9a-f]{64})")


class SignInNeeded(Exception):
    """Nobody is signed in, or no longer."""


@dataclass(frozen=True, slots=True)
class Session:
    """An administrator who is signed in."""

    key: Key
    issued_at: int


class Sessions:
    """Makes and reads session cookies. Nothing of a session is stored: the cookie is signed, its key is looked up."""

    def __init__(
        self,
        keys: Keys,
        secret: bytes,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._secret = secret
        self._now = now
        self._monotonic = monotonic
        self._remembered: dict[str, tuple[Key, float]] = {}

    async def sign_in(self, secret: str) -> Key:
        """The admin key with this secret. Raises Unauthorized, Forbidden."""
        return _checked(await self._keys.authenticate(secret.strip()), self._now())

    async def sign_in_by_id(self, key_id: str) -> Key:
        """The admin key that a sign-in link stands for. Raises Unauthorized, Forbidden."""
        try:
            return _checked(await self._keys.get(key_id), self._now())
        except NotFound as error:
            raise Unauthorized("the key of this link is gone; sign in with an admin key") from error

    async def of(self, request: Request) -> Session:
        """The session of a request. Raises SignInNeeded."""
        found = _TOKEN.fullmatch(request.cookies.get(cookie_name(request.url), ""))
        if found is None or not hmac.compare_digest(found["mac"], self._mac(found["key_id"], found["issued_at"])):
            raise SignInNeeded
        issued_at = int(found["issued_at"])
        if not issued_at <= self._now() + 60 < issued_at + SESSION_SECONDS + 60:
            raise SignInNeeded
        try:
            return Session(_checked(await self._key(found["key_id"]), self._now()), issued_at)
        except (NotFound, Unauthorized, Forbidden) as error:
            raise SignInNeeded from error

    def start(self, request: Request, response: Response, key: Key) -> None:
        """Set the cookie of a fresh session."""
        issued_at = str(int(self._now()))
        value = f"{key.id}.{issued_at}.{self._mac(key.id, issued_at)}"
        _set_cookie(request.url, response, value, max_age=SESSION_SECONDS)

    def renew(self, request: Request, response: Response, session: Session) -> None:
        """Set a fresh cookie when the session's is no longer young."""
        if self._now() - session.issued_at > RENEW_SECONDS:
            self.start(request, response, session.key)

    def end(self, request: Request, response: Response) -> None:
        """Take the cookie away."""
        _set_cookie(request.url, response, "", max_age=0)

    def forget(self, key_id: str) -> None:
        """Look a key up again at its next use: it was changed here."""
        self._remembered.pop(key_id, None)

    async def _key(self, key_id: str) -> Key:
        key, until = self._remembered.get(key_id, (None, 0.0))
        if key is None or self._monotonic() >= until:
            asked_at = self._monotonic()
            key = await self._keys.get(key_id)
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key_id] = (key, asked_at + LOOKUP_SECONDS)
        return key

    def _mac(self, key_id: str, issued_at: str) -> str:
        return hmac.new(self._secret, f"{key_id}.{issued_at}".encode(), hashlib.sha256).hexdigest()


def cookie_name(url: URL) -> str:
    """`__Host-` binds the cookie to this host over https; browsers take that name over https only."""
    return "__Host-safelight" if url.scheme == "https" else "safelight"


def can_keep_secrets(url: URL) -> bool:
    """Whether what a browser sends to `url` is private on its way: https, or it never leaves the machine."""
    return url.scheme == "https" or (url.hostname or "") in LOOPBACK_NAMES


def _set_cookie(url: URL, response: Response, value: str, *, max_age: int) -> None:
    response.set_cookie(
        cookie_name(url),
        value,
        max_age=max_age,
        path="/",
        secure=url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _checked(key: Key, at: float) -> Key:
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= at):
        raise Unauthorized("this key was revoked or has expired; sign in with another admin key")
    if Scope.ADMIN not in key.scopes:
        raise Forbidden(
            "the dashboard needs a key with the scope `admin`; make one with `safelight keys create NAME --scope admin`"
        )
    return key
