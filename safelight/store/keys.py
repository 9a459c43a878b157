"""API keys. Of a key only its public beginning and a keyed digest are stored; the secret is shown once,
when it is made."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
import zlib
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from safelight.errors import Conflict, FieldError, InvalidFields, NotFound, Unauthorized
from safelight.keys import DAY_SECONDS, MAX_LIFETIME_DAYS, MAX_OVERLAP_HOURS, Allowance, Key, Scope
from safelight.store.database import Database, now
from safelight.store.rows import key_from, to_json
from safelight.store.schema import IS_NOT_REVOKED, keys

KEY_START = "sl_live_"
NUM_RANDOM = 30
NUM_CHECKSUM = 6
NUM_PUBLIC = len(KEY_START) + 8
"""A key's first characters, stored to find it and shown to tell it from others; 22 stay secret."""

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOUCH_SECONDS = 60.0
MAX_NAME_CHARS = 100
MAX_ALLOWED = 10**15
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MAX_PRIORITY = 100


class Keys:
    """The API keys of all projects. `secret` is the server's own, without which the digests are worth nothing."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret
        self._touched: dict[str, float] = {}

    async def create(
        self,
        name: str,
        *,
        project: str = "default",
        scopes: frozenset[Scope],
        expires_at: float | None = None,
        allowance: Allowance | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which cannot be had again. Raises InvalidFields, Conflict. One transaction."""
        allowance = allowance or Allowance()
        if not 1 <= len(name.strip()) <= MAX_NAME_CHARS:
            raise InvalidFields([FieldError("name", f"a key needs a name of 1 to {MAX_NAME_CHARS} characters")])
        if not scopes:
            known = ", ".join(Scope)
            raise InvalidFields([FieldError("scopes", f"a key needs at least one scope of {known}")])
        _check_end(expires_at)
        _check_allowance(allowance)
        secret = _new_secret()
        key_id = str(uuid.uuid4())
        columns: dict[str, object] = {
            "id": key_id,
            "origin_id": key_id,
            "allowance": to_json(allowance),
            "name": name.strip(),
            "prefix": secret[:NUM_PUBLIC],
            "digest": self._digest(secret),
            "project": project,
            "scopes": " ".join(sorted(scopes)),
            "expires_at": expires_at,
        }
        return await self._database.write(_create, columns), secret

    async def authenticate(self, secret: str) -> Key:
        """The key with this secret. Raises Unauthorized; a malformed secret costs no query. One transaction."""
        if not _is_well_formed(secret):
            raise Unauthorized(f"this is not a whole API key; one starts with {KEY_START} and ends with a checksum")
        digest = self._digest(secret)
        candidates, at = await self._database.read(_candidates, secret[:NUM_PUBLIC])
        # Compared even when there is nothing to compare with, so that time does not tell which keys exist.
        matches = [hmac.compare_digest(digest, row.digest) for row in candidates] or [
            hmac.compare_digest(digest, "0" * len(digest))
        ]
        if not any(matches):
            raise Unauthorized("this API key is not known here; make one with `safelight keys create`")
        key = key_from(candidates[matches.index(True)])
        if key.revoked_at is not None:
            raise Unauthorized("this API key was revoked; make another with `safelight keys create`")
        if key.expires_at is not None and key.expires_at <= at:
            raise Unauthorized("this API key has expired; make another with `safelight keys create`")
        return key

    async def list(self) -> list[Key]:
        """All keys, revoked ones too, oldest first. One transaction."""
        return await self._database.read(_list)

    async def get(self, key_id: str) -> Key:
        """One key, revoked or not. Raises NotFound. One transaction."""
        return await self._database.read(_get, key_id)

    async def allow(self, key_id_or_name: str, allowance: Allowance) -> Key:
        """Set what a key may use, and its successors and predecessors with it. Raises InvalidFields, NotFound.
        One transaction."""
        _check_allowance(allowance)
        return await self._database.write(_allow, key_id_or_name, to_json(allowance))

    async def rotate(self, key_id_or_name: str, *, overlap_seconds: float = 0.0) -> tuple[Key, str]:
        """A new key with the name, project, scopes and allowance of this one, which ends after the overlap.

        What both use counts together. Raises InvalidFields, NotFound, Conflict. One transaction.
        """
        _check_overlap(overlap_seconds)
        secret = _new_secret()
        columns: dict[str, object] = {
            "id": str(uuid.uuid4()),
            "prefix": secret[:NUM_PUBLIC],
            "digest": self._digest(secret),
        }
        return await self._database.write(_rotate, key_id_or_name, columns, overlap_seconds=overlap_seconds), secret

    async def revoke(self, key_id_or_name: str) -> Key:
        """End a key, named by its id or by the name it has; a revoked one stays so. Raises NotFound.
        One transaction."""
        return await self._database.write(_revoke, key_id_or_name)

    async def touch(self, key_id: str) -> None:
        """Note that a key is in use. Written at most once a minute, else free. One transaction."""
        at = time.monotonic()
        if at - self._touched.get(key_id, -TOUCH_SECONDS) < TOUCH_SECONDS:
            return
        self._touched[key_id] = at
        await self._database.write_locking(("keys", key_id), _touch, key_id)

    async def count(self) -> int:
        """How many keys were ever made. One transaction."""
        return await self._database.read(_count)

    def _digest(self, secret: str) -> str:
        return hmac.new(self._secret, b"key:" + secret.encode(), hashlib.sha256).hexdigest()


def _new_secret() -> str:
    start = KEY_START + "".join(secrets.choice(BASE62) for _ in range(NUM_RANDOM))
    return start + _checksum(start)


def _checksum(start: str) -> str:
    """Six characters that catch a key cut short or mistyped before anything is asked of the database."""
    rest, characters = zlib.crc32(start.encode()), ""
    for _ in range(NUM_CHECKSUM):
        rest, digit = divmod(rest, len(BASE62))
        characters = BASE62[digit] + characters
    return characters


def _is_well_formed(secret: str) -> bool:
    is_whole = len(secret) == len(KEY_START) + NUM_RANDOM + NUM_CHECKSUM and secret.startswith(KEY_START)
    return is_whole and secret.isascii() and secret[-NUM_CHECKSUM:] == _checksum(secret[:-NUM_CHECKSUM])


def _create(connection: Connection, columns: dict[str, object]) -> Key:
    try:
        row = connection.execute(sa.insert(keys).values(created_at=now(), **columns).returning(*keys.c)).one()
    except IntegrityError as error:
        message = f"there is a key named {columns['name']!r} already; revoke it or take another name"
        raise Conflict(message) from error
    return key_from(row)


def _candidates(connection: Connection, prefix: str) -> tuple[list[sa.Row[Any]], float]:
    found = list(connection.execute(sa.select(keys).where(keys.c.prefix == prefix)))
    return found, connection.execute(sa.select(now())).scalar_one()


def _list(connection: Connection) -> list[Key]:
    return [key_from(row) for row in connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id))]


def _get(connection: Connection, key_id: str) -> Key:
    row = connection.execute(sa.select(keys).where(keys.c.id == key_id)).first()
    if row is None:
        raise not_found()
    return key_from(row)


def _check_end(expires_at: float | None) -> None:
    # Asked this way round, what is no number is refused too.
    if expires_at is None or 0 <= expires_at <= time.time() + MAX_LIFETIME_DAYS * DAY_SECONDS:
        return
    message = f"a key ends at most {MAX_LIFETIME_DAYS} days from now; leave it out for one that never ends"
    raise InvalidFields([FieldError("expires_at", message)])


def _check_overlap(overlap_seconds: float) -> None:
    if not 0 <= overlap_seconds <= MAX_OVERLAP_HOURS * 3_600:
        message = f"the old key goes on for 0 to {MAX_OVERLAP_HOURS} hours at most"
        raise InvalidFields([FieldError("overlap_seconds", message)])


def _check_allowance(allowance: Allowance) -> None:
    wrong = [
        FieldError(name, f"{value} is not a number from 1 to {MAX_ALLOWED}")
        for name, value in asdict(allowance).items()
        if value is not None and name not in {"weight", "priority"} and not 1 <= value <= MAX_ALLOWED
    ]
    if not MIN_WEIGHT <= allowance.weight <= MAX_WEIGHT:
        wrong.append(FieldError("weight", f"{allowance.weight} is not a number from {MIN_WEIGHT} to {MAX_WEIGHT}"))
    if not 0 <= allowance.priority <= MAX_PRIORITY:
        wrong.append(FieldError("priority", f"{allowance.priority} is not a whole number from 0 to {MAX_PRIORITY}"))
    if wrong:
        raise InvalidFields(wrong)


def named(key_id_or_name: str) -> sa.ColumnElement[bool]:
    """A key by its id, or by the name it has while it is not revoked."""
    return sa.or_(keys.c.id == key_id_or_name, sa.and_(keys.c.name == key_id_or_name, IS_NOT_REVOKED))


def _allow(connection: Connection, key_id_or_name: str, allowance: str) -> Key:
    found = connection.execute(sa.select(keys).where(named(key_id_or_name))).first()
    if found is None:
        raise not_found()
    connection.execute(sa.update(keys).where(keys.c.origin_id == found.origin_id).values(allowance=allowance))
    return _get(connection, found.id)


def _rotate(connection: Connection, key_id_or_name: str, columns: dict[str, object], *, overlap_seconds: float) -> Key:
    old = connection.execute(sa.select(keys).where(named(key_id_or_name))).first()
    if old is None:
        raise not_found()
    if old.revoked_at is not None:
        raise Conflict("this key was revoked; make a new one instead")
    if old.expires_at is not None and old.expires_at <= connection.execute(sa.select(now())).scalar_one():
        raise Conflict("this key has expired; make a new one instead")
    ends_at = now() + overlap_seconds
    is_longer = sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > ends_at)
    # The new key takes the name, so the old one is told apart by its public beginning.
    values: dict[str, object] = {"name": f"{old.name} ({old.prefix})"[-MAX_NAME_CHARS:]}
    values["expires_at"] = sa.case((is_longer, ends_at), else_=keys.c.expires_at)
    if overlap_seconds <= 0:
        values["revoked_at"] = now()
    connection.execute(sa.update(keys).where(keys.c.id == old.id).values(**values))
    kept = {"name": old.name, "project": old.project, "scopes": old.scopes, "expires_at": old.expires_at}
    kept |= {"origin_id": old.origin_id, "allowance": old.allowance}
    return _create(connection, columns | kept)


def _revoke(connection: Connection, key_id_or_name: str) -> Key:
    revoked_at = sa.func.coalesce(keys.c.revoked_at, now())
    row = connection.execute(
        sa.update(keys).where(named(key_id_or_name)).values(revoked_at=revoked_at).returning(*keys.c)
    ).first()
    if row is None:
        raise not_found()
    return key_from(row)


def _touch(connection: Connection, key_id: str) -> None:
    is_old = sa.or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < now() - TOUCH_SECONDS)
    connection.execute(sa.update(keys).where(keys.c.id == key_id, is_old).values(last_used_at=now()))


def _count(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(keys)).scalar_one()


def not_found() -> NotFound:
    """There is no such key."""
    return NotFound("there is no such key; list them with `safelight keys list`", code="key_not_found")
