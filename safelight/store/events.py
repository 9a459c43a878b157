"""Facts about runs, appended in the transaction that made them true. Progress is not kept here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.runs import RunError, RunEvent, RunEventKind
from safelight.store.database import Database
from safelight.store.late import add_late
from safelight.store.prepared import Prepared
from safelight.store.rows import event_from
from safelight.store.schema import events

INSERT = Prepared(sa.insert(events))


class Events:
    """The stored events of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, run_id: str, sequence: int = 0) -> list[RunEvent]:
        """The events of a run that come after `sequence`, in order; none for a run that does not exist.
        One transaction."""
        return await self._database.read(_after, run_id, sequence)


@dataclass(frozen=True, slots=True)
class Fact:
    """What is new about a run."""

    kind: RunEventKind
    image_index: int | None = None
    error: RunError | None = None


def append(connection: Connection, run: sa.Row[Any], *facts: Fact, at: float) -> None:
    """Add events to `run`, a row whose `num_events` was raised by as many in this transaction."""
    for sequence, fact in enumerate(facts, run.num_events - len(facts) + 1):
        add_late(connection, INSERT, _columns(run.id, sequence, fact, at))


def _columns(run_id: str, sequence: int, fact: Fact, at: float) -> dict[str, object]:
    return {
        "run_id": run_id,
        "sequence": sequence,
        "kind": fact.kind,
        "at": at,
        "image_index": fact.image_index,
        "error_code": fact.error.code if fact.error else None,
        "error_message": fact.error.message if fact.error else None,
    }


def _after(connection: Connection, run_id: str, sequence: int) -> list[RunEvent]:
    found = connection.execute(
        sa.select(events).where(events.c.run_id == run_id, events.c.sequence > sequence).order_by(events.c.sequence)
    )
    return [event_from(row) for row in found]
