"""Sign-in links: each a secret that stands for one key, once, for a short time. Files, so that any
process may make one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safelight.errors import Unauthorized

VALID_SECONDS = 3600.0

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class SignInLinks:
    """A folder with one file for each link not yet used. A file's name is a digest: the folder holds no secrets."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    async def create(self, key_id: str) -> str:
        """A token that signs in once as this key."""
        return await asyncio.to_thread(self._create, key_id, self._now() + VALID_SECONDS)

    async def redeem(self, token: str) -> str:
        """The id of the key behind `token`, which is used up by this. Raises Unauthorized."""
        return await asyncio.to_thread(self._redeem, token)

    def _create(self, key_id: str, expires_at: float) -> str:
        token = secrets.token_urlsafe(32)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        descriptor = os.open(self._path(token), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"key_id": key_id, "expires_at": expires_at}, file)
        return token

    def _redeem(self, token: str) -> str:
        message = "this sign-in link was used already or is too old; sign in with an admin key"
        if not _TOKEN.fullmatch(token):
            raise Unauthorized(message)
        path = self._path(token)
        try:
            link = json.loads(path.read_text(encoding="utf-8"))
            # Of two who come at once, one removes the file, and only that one gets in.
            path.unlink()
        except (FileNotFoundError, ValueError) as error:
            raise Unauthorized(message) from error
        if link["expires_at"] <= self._now():
            raise Unauthorized(message)
        return str(link["key_id"])

    def _path(self, token: str) -> Path:
        return self._folder / hashlib.sha256(token.encode()).hexdigest()

    def _sweep(self) -> None:
        oldest_kept = self._now() - 2 * VALID_SECONDS
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest_kept:
                    file.unlink()
