"""Runs by more than their columns: by key, by a word of the prompt. Looks at a bounded stretch of history at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.runs import Run, RunStatus
from safelight.store import claims
from safelight.store.cursors import cursor_at, read_cursor
from safelight.store.database import Database, prompt_in
from safelight.store.rows import run_from
from safelight.store.schema import Text, runs

STRETCH = 10_000
"""Runs that one call looks through at most for a word or a key; its cursor leads on to older ones."""

NEWEST_FIRST = (runs.c.created_at.desc(), runs.c.number.desc())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSearch:
    """Which runs to find, of all projects. None: any. `text` is part of the prompt, in any case."""

    deployment: str | None = None
    status: RunStatus | None = None
    key_id: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    text: str | None = None

    @property
    def is_scan(self) -> bool:
        """Whether rows must be looked at one by one."""
        return self.key_id is not None or self.text is not None


class Search:
    """Finds runs for an administrator."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self, wanted: RunSearch, *, limit: int, cursor: str | None = None) -> tuple[list[Run], str | None]:
        """A page, newest first, and the cursor of the next; a page of a scan may be short, even empty, and go on.

        Raises InvalidFields. One transaction.
        """
        return await self._database.read(_runs, wanted, limit, cursor)


def _runs(connection: Connection, wanted: RunSearch, limit: int, cursor: str | None) -> tuple[list[Run], str | None]:
    conditions = _indexed(wanted, cursor)
    query = sa.select(runs).where(*conditions).order_by(*NEWEST_FIRST).limit(limit + 1)
    stretch_end = None
    if wanted.is_scan:
        stretch_end = _end_of_stretch(connection, conditions)
        if stretch_end is not None:
            query = query.where(_position() >= sa.tuple_(stretch_end.created_at, stretch_end.number))
        query = query.where(*_looked_at(wanted))
    found = connection.execute(query).all()
    page = found[:limit]
    drawn = claims.images_of(connection, [row.id for row in page])
    last = page[-1] if len(found) > limit else stretch_end
    return [run_from(row, drawn.get(row.id, ())) for row in page], None if last is None else cursor_at(last)


def _position() -> sa.Tuple:
    return sa.tuple_(runs.c.created_at, runs.c.number)


def _indexed(wanted: RunSearch, cursor: str | None) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.deployment is not None:
        conditions.append(runs.c.deployment == wanted.deployment)
    if wanted.status is not None:
        conditions.append(runs.c.status == wanted.status)
    if wanted.created_after is not None:
        conditions.append(runs.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(runs.c.created_at < wanted.created_before)
    if cursor is not None:
        conditions.append(_position() < sa.tuple_(*read_cursor(cursor)))
    return conditions


def _looked_at(wanted: RunSearch) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.key_id is not None:
        conditions.append(runs.c.key_id == wanted.key_id)
    if wanted.text is not None:
        prompt = sa.type_coerce(prompt_in(runs.c.params), Text)
        conditions.append(prompt.icontains(wanted.text, autoescape=True))
    return conditions


def _end_of_stretch(connection: Connection, conditions: list[sa.ColumnElement[bool]]) -> sa.Row[Any] | None:
    """The last run to look at, where there are older ones."""
    position: sa.Select[Any] = sa.select(runs.c.created_at, runs.c.number).where(*conditions).order_by(*NEWEST_FIRST)
    return connection.execute(position.offset(STRETCH - 1).limit(1)).first()
