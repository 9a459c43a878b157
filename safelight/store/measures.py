"""What a metrics scrape reads: the queue, the runs that ended since the last one, the workers. Each
read is one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.metrics import EngineFigures
from safelight.runs import RunStatus
from safelight.store.database import Database, now
from safelight.store.schema import IS_PENDING, IS_QUEUED, IS_RUNNING, deliveries, images, runs, workers

SETTLED_SECONDS = 2.0
"""A transaction that ended a run that long ago is taken to be committed: runs are counted once, and none is missed."""

MAX_ENDS = 10_000
"""Runs that are read at once, which may be many after nobody asked for long. The others come with the next look."""

FORGOTTEN_SECONDS = 86400.0
"""A worker that fell silent that long ago is not shown any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The open runs of one deployment."""

    deployment: str
    num_queued: int
    num_running: int
    oldest_queued_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """One run that ended. `wait_seconds` is None where it was never started; `code` is empty where it did not fail."""

    deployment: str
    status: RunStatus
    code: str
    wait_seconds: float | None
    seconds: float
    device_seconds: float
    num_images: int


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """What a worker last said of its engine, and how long ago it was heard of."""

    worker_id: str
    silent_seconds: float
    engine: EngineFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """All of it at one moment. Runs that ended after `until` are in the next one."""

    until: float
    backlogs: Sequence[Backlog]
    ends: Sequence[RunEnd]
    workers: Sequence[WorkerFigures]
    num_pending_deliveries: int
    overdue_seconds: float


class MeasureTable:
    """Reads what others wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, *, since: float | None) -> Measures:
        """The present, and the runs that ended after `since`, the `until` of the read before; None: no runs. Of very
        many only the first. One transaction."""
        return await self._database.read(_read, since)


def hear(connection: Connection, worker_id: str, figures: EngineFigures) -> None:
    """Keep what a worker says of its engine."""
    said = {"heard_at": now(), "figures": json.dumps(asdict(figures))}
    known = sa.update(workers).where(workers.c.worker_id == worker_id)
    if connection.execute(known.values(**said)).rowcount == 0:
        # Workers that were killed say no farewell, and where names change with every start they would pile up.
        connection.execute(sa.delete(workers).where(workers.c.heard_at < now() - FORGOTTEN_SECONDS))
        connection.execute(sa.insert(workers).values(worker_id=worker_id, **said))


def _read(connection: Connection, since: float | None) -> Measures:
    at: float = connection.execute(sa.select(now())).scalar_one()
    until = at - SETTLED_SECONDS
    if since is not None:
        # A clock that was set back must not have runs counted twice.
        until = _end_of_batch(connection, since, max(since, until))
    pending = sa.select(sa.func.count(), sa.func.min(deliveries.c.next_attempt_at)).where(IS_PENDING)
    num_pending, due_at = connection.execute(pending).one()
    return Measures(
        until=until,
        backlogs=_backlogs(connection, at),
        ends=[] if since is None else _ends(connection, since, until),
        workers=_workers(connection, at),
        num_pending_deliveries=num_pending,
        overdue_seconds=max(0.0, at - due_at) if due_at is not None else 0.0,
    )


def _backlogs(connection: Connection, at: float) -> list[Backlog]:
    def counted(condition: sa.TextClause) -> dict[str, tuple[int, float]]:
        query = sa.select(runs.c.deployment, sa.func.count(), sa.func.min(runs.c.created_at)).where(condition)
        return {name: (count, oldest) for name, count, oldest in connection.execute(query.group_by(runs.c.deployment))}

    queued, running = counted(IS_QUEUED), counted(IS_RUNNING)
    return [
        Backlog(
            deployment=name,
            num_queued=queued.get(name, (0, at))[0],
            num_running=running.get(name, (0, at))[0],
            oldest_queued_seconds=max(0.0, at - queued.get(name, (0, at))[1]),
        )
        for name in sorted(queued.keys() | running.keys())
    ]


def _end_of_batch(connection: Connection, since: float, until: float) -> float:
    """`until`, or the earlier moment by which MAX_ENDS runs had ended. All that ended at that moment come with them, so
    that none is missed and none comes twice."""
    ends = sa.select(runs.c.ended_at).where(runs.c.ended_at > since, runs.c.ended_at <= until)
    last: float | None = connection.execute(ends.order_by(runs.c.ended_at).offset(MAX_ENDS - 1).limit(1)).scalar()
    return until if last is None else last


def _ends(connection: Connection, since: float, until: float) -> list[RunEnd]:
    num_images = sa.select(sa.func.count()).where(images.c.run_id == runs.c.id).scalar_subquery().label("num_finished")
    times = (runs.c.created_at, runs.c.started_at, runs.c.ended_at, runs.c.device_ms)
    query = sa.select(runs.c.deployment, runs.c.status, runs.c.error_code, *times, num_images)
    rows = connection.execute(query.where(runs.c.ended_at > since, runs.c.ended_at <= until))
    return [_end_from(row) for row in rows]


def _end_from(row: Any) -> RunEnd:
    return RunEnd(
        deployment=row.deployment,
        status=RunStatus(row.status),
        code=row.error_code or "",
        wait_seconds=None if row.started_at is None else row.started_at - row.created_at,
        seconds=row.ended_at - row.created_at,
        device_seconds=(row.device_ms or 0.0) / 1000.0,
        num_images=row.num_finished,
    )


def _workers(connection: Connection, at: float) -> list[WorkerFigures]:
    heard = sa.select(workers).where(workers.c.heard_at > at - FORGOTTEN_SECONDS).order_by(workers.c.worker_id)
    return [
        WorkerFigures(row.worker_id, max(0.0, at - row.heard_at), _figures_from(row.figures))
        for row in connection.execute(heard)
    ]


def _figures_from(text: str) -> EngineFigures:
    """Read leniently: the worker may be older or newer than this."""
    known = {name: value for name, value in json.loads(text).items() if name in EngineFigures.__dataclass_fields__}
    if "step_counts" in known:
        known["step_counts"] = tuple(known["step_counts"])
    return EngineFigures(**known)
