"""The life of a run under a claim, as transactions: claim, pulse, add_image, finish, release, requeue_lost.

There is one door into `running` (claim) and one way to an end; every write under a claim names its fence.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import LostClaim
from safelight.metrics import EngineFigures
from safelight.runs import (
    DEADLINE_MISSED,
    Claim,
    ImageRecord,
    Outcome,
    Progress,
    Pulse,
    Run,
    RunError,
    RunEventKind,
    RunStatus,
)
from safelight.store import deliveries, events, measures
from safelight.store.database import now
from safelight.store.events import Fact
from safelight.store.late import add_hint
from safelight.store.prepared import Prepared
from safelight.store.rows import run_from, to_json
from safelight.store.schema import IS_QUEUED, IS_RUNNING, images, placements, runs

MAX_REQUEUED = 100
"""Lost runs handled in one transaction: other writers wait for it."""

# Statements are built once: building one costs more than SQLite takes to execute it.

AS_KNOWN = sa.and_(
    runs.c.id == sa.bindparam("this_id"),
    runs.c.fence == sa.bindparam("this_fence"),
    runs.c.status == sa.bindparam("this_status"),
)
"""The run still is as the writer knows it. Nothing is written to a run that has moved on."""

IS_THIS = runs.c.id == sa.bindparam("this_id")
WITH_IMAGES = Prepared(
    sa.select(runs, *(column for column in images.c if column is not images.c.run_id))
    .outerjoin(images, images.c.run_id == runs.c.id)
    .where(IS_THIS)
    .order_by(images.c.image_index)
)
"""A run once for each of its pictures, and once without any: asking for them apart is one more way to the database."""
LEASE_END = now() + sa.bindparam("lease_seconds", type_=sa.Double)
ONE_MORE_EVENT = {runs.c.num_events: runs.c.num_events + 1}
MORE_EVENTS = {runs.c.num_events: runs.c.num_events + sa.bindparam("num_new_events")}
WRITTEN = (*runs.c, now().label("written_at"))


def _claim_by(*order: sa.ColumnElement[Any], limit: int) -> Prepared:
    # The limit is part of the text: SQLite plans a statement anew each time a LIMIT of it is bound.
    # A table of its own, since PostgreSQL may carry out a subquery several times and lock other runs each time.
    first = (
        sa.select(runs.c.number)
        .where(IS_QUEUED, runs.c.rank < sa.bindparam("rank_below"))
        .order_by(runs.c.rank, *order, runs.c.created_at, runs.c.number)
        .limit(sa.literal_column(str(limit), sa.Integer))
        .with_for_update(skip_locked=True)
        .cte("first")
    )
    figures = {
        runs.c.status: RunStatus.RUNNING,
        runs.c.lease_ends_at: LEASE_END,
        runs.c.fence: runs.c.fence + 1,
        runs.c.num_attempts: runs.c.num_attempts + 1,
        runs.c.started_at: sa.func.coalesce(runs.c.started_at, now()),
        **ONE_MORE_EVENT,
    }
    is_first = runs.c.number.in_(sa.select(first.c.number))
    is_fresh = runs.c.num_attempts < sa.bindparam("attempts_below")
    return Prepared(sa.update(runs).where(is_first, is_fresh).values(figures).returning(*WRITTEN))


@functools.lru_cache(maxsize=64)
def _claim(num_keys: int, limit: int) -> Prepared:
    """Of one priority the oldest; those of so many keys after all others, key by key. Where there are such keys, this
    sorts the whole queue instead of following an index: it is as long as the door allows, and no longer."""
    if num_keys == 0:
        return _claim_by(limit=limit)
    key_id = sa.func.coalesce(runs.c.key_id, "")
    places = [(key_id == sa.bindparam(f"key_{place}"), place + 1) for place in range(num_keys)]
    return _claim_by(sa.case(*places, else_=0), limit=limit)


IS_KNOWN = sa.update(runs).where(AS_KNOWN).returning(runs.c.is_cancel_requested)
REPORT = Prepared(IS_KNOWN)
REPORT_AND_RENEW = Prepared(IS_KNOWN.values(lease_ends_at=LEASE_END))
IS_WORKER = placements.c.worker_id == sa.bindparam("this_worker")
HEAR_WORKER = Prepared(sa.update(placements).where(IS_WORKER).values(heard_at=now()))
ADD_EVENT = sa.update(runs).where(AS_KNOWN).values(ONE_MORE_EVENT).returning(*WRITTEN)
# As text, since columns lose their tables' names where a statement returns them.
HAS_ENDPOINTS = sa.literal_column(
    "EXISTS (SELECT 1 FROM webhook_endpoints WHERE webhook_endpoints.project = runs.project)", sa.Boolean
)
END = Prepared(
    sa.update(runs)
    .where(AS_KNOWN)
    .values({runs.c.lease_ends_at: None, runs.c.eta_seconds: None, runs.c.ended_at: now(), **MORE_EVENTS})
    .returning(
        *(runs.c.id, runs.c.project, runs.c.key_id, runs.c.status, runs.c.num_events, runs.c.ended_at),
        *(runs.c.webhook_endpoint, runs.c.run_time_ms, runs.c.error_code, runs.c.error_message),
        HAS_ENDPOINTS.label("has_endpoints"),
    )
)
QUEUE_AGAIN = ADD_EVENT.values(
    {
        runs.c.status: RunStatus.QUEUED,
        runs.c.worker_id: None,
        runs.c.lease_ends_at: None,
        runs.c.eta_seconds: None,
        runs.c.steps_done: 0,
        runs.c.num_attempts: runs.c.num_attempts - sa.bindparam("num_forgiven"),
    }
)
LOST = (
    sa.select(runs)
    .where(IS_RUNNING, sa.or_(runs.c.lease_ends_at < now(), runs.c.worker_id == sa.bindparam("this_worker")))
    .limit(MAX_REQUEUED)
    .with_for_update()
)
# What was claimed once has begun, and goes on however late it is.
OVERDUE = (
    sa.select(runs)
    .where(IS_QUEUED, runs.c.deadline_at < now(), runs.c.fence == 0)
    .limit(MAX_REQUEUED)
    .with_for_update()
)
IS_CANCEL_REQUESTED = sa.select(runs.c.is_cancel_requested).where(AS_KNOWN).with_for_update()
ADD_IMAGES = Prepared(sa.insert(images))
IMAGES_OF = (
    sa.select(images)
    .where(images.c.run_id.in_(sa.bindparam("run_ids", expanding=True)))
    .order_by(images.c.run_id, images.c.image_index)
)


def claim(
    connection: Connection,
    worker_id: str,
    *,
    limit: int,
    lease_seconds: float,
    crowded: Sequence[str],
    attempts_below: int,
    above_priority: int,
) -> list[Claim]:
    wanted: dict[str, object] = {
        "lease_seconds": lease_seconds,
        "worker_id": worker_id,
        "attempts_below": attempts_below,
        "rank_below": -above_priority,
    }
    wanted |= {f"key_{place}": key_id for place, key_id in enumerate(crowded)}
    claimed = _claim(len(crowded), limit).execute(connection, wanted).all()
    claimed = sorted(claimed, key=lambda row: (row.created_at, row.number))
    for row in claimed:
        events.append(connection, row, Fact(RunEventKind.STARTED), at=row.written_at)
        add_hint(connection, topic_of(row.id))
    drawn = images_of(connection, [row.id for row in claimed if row.fence > 1])
    return [Claim(run_from(row, drawn.get(row.id, ())), worker_id, row.fence) for row in claimed]


def pulse(
    connection: Connection,
    worker_id: str,
    progress: Sequence[Progress],
    *,
    lease_seconds: float,
    renew: bool,
    figures: EngineFigures | None = None,
) -> Pulse:
    cancel_requested, lost = set(), set()
    for report in progress:
        columns = {
            **_as_known(report.run_id, report.fence, RunStatus.RUNNING),
            "steps_done": report.steps_done,
            "steps_total": report.steps_total,
            "eta_seconds": report.eta_seconds,
        }
        if renew:
            held = REPORT_AND_RENEW.execute(connection, {**columns, "lease_seconds": lease_seconds}).first()
        else:
            held = REPORT.execute(connection, columns).first()
        if held is None:
            lost.add(report.run_id)
        elif held.is_cancel_requested:
            cancel_requested.add(report.run_id)
        add_hint(connection, topic_of(report.run_id))
    if renew:
        HEAR_WORKER.execute(connection, {"this_worker": worker_id})
    if figures is not None:
        measures.hear(connection, worker_id, figures)
    return Pulse(frozenset(cancel_requested), frozenset(lost))


def add_image(connection: Connection, claim: Claim, image: ImageRecord) -> None:
    # Making room for the event checks the fence and locks the run at once.
    row = connection.execute(ADD_EVENT, _as_claimed(claim)).first()
    if row is None:
        raise _lost(claim)
    ADD_IMAGES.execute_each(connection, [_image_columns(claim.run.id, image)])
    events.append(connection, row, Fact(RunEventKind.IMAGE, image_index=image.index), at=row.written_at)
    add_hint(connection, topic_of(row.id))


def finish(connection: Connection, claim: Claim, outcome: Outcome) -> None:
    columns: dict[str, object] = {
        "run_time_ms": outcome.run_time_ms,
        "device_ms": outcome.device_ms,
        "warnings": json.dumps(outcome.warnings),
        "provenance": None if outcome.provenance is None else to_json(outcome.provenance),
    }
    if outcome.progress is not None:
        columns |= {"steps_done": outcome.progress.steps_done, "steps_total": outcome.progress.steps_total}
    known = _as_claimed(claim)
    if not _end(connection, known, outcome.status, error=outcome.error, new_images=outcome.images, **columns):
        raise _lost(claim)


def release(connection: Connection, claim: Claim) -> None:
    held = connection.execute(IS_CANCEL_REQUESTED, _as_claimed(claim)).first()
    if held is None:
        raise _lost(claim)
    if held.is_cancel_requested:
        is_written = _end(connection, _as_claimed(claim), RunStatus.CANCELLED)
    else:
        is_written = _queue_again(connection, _as_claimed(claim), num_forgiven=1)
    assert is_written, "the run was read in this transaction"


def requeue_lost(connection: Connection, *, max_attempts: int, worker_id: str | None) -> list[Run]:
    lost = connection.execute(LOST, {"this_worker": worker_id}).all()
    return [_take_back(connection, row, max_attempts=max_attempts) for row in lost]


def end_overdue(connection: Connection) -> list[Run]:
    ended = []
    for row in connection.execute(OVERDUE).all():
        is_written = _end(connection, _as_queued(row), RunStatus.FAILED, error=DEADLINE_MISSED)
        ended.append(_written(connection, row.id, is_written))
    return ended


def cancel_queued(connection: Connection, row: sa.Row[Any]) -> Run:
    """End a queued run that was read in this transaction."""
    return _written(connection, row.id, _end(connection, _as_queued(row), RunStatus.CANCELLED))


def find(connection: Connection, run_id: str) -> Run | None:
    """The run of that id with its finished pictures."""
    rows = WITH_IMAGES.execute(connection, {"this_id": run_id}).all()
    return run_from(rows[0], [row for row in rows if row.image_index is not None]) if rows else None


def with_images(connection: Connection, row: sa.Row[Any]) -> Run:
    """The run of `row` with its finished pictures."""
    return run_from(row, images_of(connection, [row.id]).get(row.id, ()))


def topic_of(run_id: str) -> str:
    """Of the hints that anything about a run has changed."""
    return f"run:{run_id}"


def add_end_hint(connection: Connection, run_id: str) -> None:
    """Hint that a run has ended: to those who follow it, and to those who wait for nothing else."""
    add_hint(connection, topic_of(run_id), f"end:{run_id}")


def images_of(connection: Connection, run_ids: Sequence[str]) -> Mapping[str, Sequence[sa.Row[Any]]]:
    """The image rows of some runs, by run, each in order."""
    found: dict[str, list[sa.Row[Any]]] = {}
    if run_ids:
        for row in connection.execute(IMAGES_OF, {"run_ids": run_ids}):
            found.setdefault(row.run_id, []).append(row)
    return found


def _take_back(connection: Connection, lost: sa.Row[Any], *, max_attempts: int) -> Run:
    """End a run whose worker is gone, or queue it again where another worker may do better."""
    known = _as_known(lost.id, lost.fence, RunStatus.RUNNING)
    if lost.is_cancel_requested:
        is_written = _end(connection, known, RunStatus.CANCELLED)
    elif lost.num_attempts >= max_attempts:
        message = f"{lost.num_attempts} workers stopped answering while they had this run; see their logs"
        is_written = _end(connection, known, RunStatus.FAILED, error=RunError("worker_lost", message))
    else:
        is_written = _queue_again(connection, known, num_forgiven=0)
    return _written(connection, lost.id, is_written)


def _written(connection: Connection, run_id: str, is_written: bool) -> Run:
    """The run as it is now."""
    run = find(connection, run_id)
    assert is_written and run is not None, "the run was read in this transaction"
    return run


def _end(
    connection: Connection,
    known: Mapping[str, object],
    status: RunStatus,
    *,
    error: RunError | None = None,
    new_images: Sequence[ImageRecord] = (),
    **columns: object,
) -> bool:
    """The one way to an end: status, last pictures, events and deliveries. False when the run is no longer as known."""
    facts = [Fact(RunEventKind.IMAGE, image_index=image.index) for image in new_images]
    facts.append(Fact(RunEventKind(status.value), error=error))
    if error is not None:
        columns |= {"error_code": error.code, "error_message": error.message}
    row = END.execute(connection, {**known, "status": status, "num_new_events": len(facts), **columns}).first()
    if row is None:
        return False
    if new_images:
        ADD_IMAGES.execute_each(connection, [_image_columns(row.id, image) for image in new_images])
    events.append(connection, row, *facts, at=row.ended_at)
    deliveries.add(connection, row)
    add_end_hint(connection, row.id)
    return True


def _queue_again(connection: Connection, known: Mapping[str, object], *, num_forgiven: int) -> bool:
    row = connection.execute(QUEUE_AGAIN, {**known, "num_forgiven": num_forgiven}).first()
    if row is not None:
        events.append(connection, row, Fact(RunEventKind.REQUEUED), at=row.written_at)
        add_hint(connection, "queue", topic_of(row.id))
    return row is not None


def _image_columns(run_id: str, image: ImageRecord) -> dict[str, object]:
    return {
        "run_id": run_id,
        "image_index": image.index,
        "seed": image.seed,
        "output_format": image.output_format,
        "path": image.path,
        "num_bytes": image.num_bytes,
        "sha256": image.sha256,
    }


def _as_known(run_id: str, fence: int, status: RunStatus) -> dict[str, object]:
    return {"this_id": run_id, "this_fence": fence, "this_status": status}


def _as_queued(row: sa.Row[Any]) -> dict[str, object]:
    return _as_known(row.id, row.fence, RunStatus.QUEUED)


def _as_claimed(claim: Claim) -> dict[str, object]:
    return _as_known(claim.run.id, claim.fence, RunStatus.RUNNING)


def _lost(claim: Claim) -> LostClaim:
    return LostClaim(f"{claim.worker_id} no longer has run {claim.run.id}", run_id=claim.run.id)
