"""Facts about runs, appended in the transaction that made them true. Progress is not kept here."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.runs import RunError, RunEvent, RunEventKind
from safelight.store.database import Database
from safelight.store.rows import event_from
from safelight.store.schema import events

INSERT = sa.insert(events)


class Events:
    """The stored events of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, run_id: str, sequence: int = 0) -> list[RunEvent]:
        """The events of a run that come after `sequence`, in order; none for a run that does not exist. One transaction."""
        return await self._database.read(_after, run_id, sequence)


def append(
    connection: Connection,
    run: sa.Row[Any],
    kind: RunEventKind,
    *,
    at: float,
    image_index: int | None = None,
    error: RunError | None = None,
) -> None:
    """Add an event to `run`, a row whose `num_events` was raised in this transaction."""
    connection.execute(
        INSERT,
        {
            "run_id": run.id,
            "sequence": run.num_events,
            "kind": kind,
            "at": at,
            "image_index": image_index,
            "error_code": error.code if error else None,
            "error_message": error.message if error else None,
        },
    )


def _after(connection: Connection, run_id: str, sequence: int) -> list[RunEvent]:
    found = connection.execute(
        sa.select(events).where(events.c.run_id == run_id, events.c.sequence > sequence).order_by(events.c.sequence)
    )
    return [event_from(row) for row in found]
