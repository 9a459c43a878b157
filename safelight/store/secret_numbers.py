"""Secrets that are derived and never stored: only which numbers of an owner's secrets sign now is in the database."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.store.database import now

OVERLAP_SECONDS = 86400.0
"""How long a secret goes on signing after it was rotated, beside its successor."""


def derive(secret: bytes, purpose: str) -> str:
    """A secret of the server for one purpose, in the form that Standard Webhooks' libraries take."""
    return "whsec_" + base64.b64encode(hmac.new(secret, purpose.encode(), hashlib.sha256).digest()).decode()


@dataclass(frozen=True, slots=True)
class SecretNumbers:
    """The numbers in one table, by their owner's column. The newest number of an owner never ends."""

    table: sa.Table
    owner: sa.Column[str]

    def add(self, connection: Connection, owner: str, number: int) -> None:
        """Raises IntegrityError when the owner has this number already."""
        row = {self.owner.name: owner, "number": number}
        connection.execute(sa.insert(self.table).values(created_at=now(), **row))

    def end(self, connection: Connection, owner: str, overlap_seconds: float) -> None:
        """End all numbers of an owner when the overlap has passed."""
        ends_at = now() + overlap_seconds
        # One that ends sooner, by an earlier rotation, goes on ending then.
        is_longer = sa.or_(self.table.c.ends_at.is_(None), self.table.c.ends_at > ends_at)
        connection.execute(sa.update(self.table).where(self.owner == owner, is_longer).values(ends_at=ends_at))

    def live(self, connection: Connection, owner: str) -> list[int]:
        """The numbers that sign now, newest first."""
        ends_later = sa.or_(self.table.c.ends_at.is_(None), self.table.c.ends_at > now())
        numbers = sa.select(self.table.c.number).where(self.owner == owner, ends_later)
        return list(connection.execute(numbers.order_by(self.table.c.number.desc())).scalars())

    def ends_of_previous(self, connection: Connection, owners: Sequence[str]) -> dict[str, float]:
        """Until when a rotated secret goes on signing, by owner; those without one are left out."""
        is_ending = sa.and_(self.owner.in_(owners), self.table.c.ends_at > now())
        ends = sa.select(self.owner, sa.func.max(self.table.c.ends_at)).where(is_ending).group_by(self.owner)
        return {row[0]: row[1] for row in connection.execute(ends)}
