"""The life of a run under a claim, as transactions: claim, pulse, add_image, finish, release, requeue_lost.

There is one door into `running` (claim) and one way out to an end (`end_run`); every write under a claim names its fence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import LostClaim
from safelight.runs import (
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
from safelight.store import deliveries, events
from safelight.store.database import now
from safelight.store.rows import run_from
from safelight.store.schema import IS_QUEUED, IS_RUNNING, images, placements, runs

MAX_REQUEUED = 100
"""Lost runs handled in one transaction: other writers wait for it."""

NO_CLAIM = {"lease_ends_at": None, "eta_seconds": None}
IDLE = {**NO_CLAIM, "status": RunStatus.QUEUED, "worker_id": None, "steps_done": 0}


def claim(connection: Connection, worker_id: str, *, limit: int, lease_seconds: float) -> list[Claim]:
    oldest = sa.select(runs.c.number).where(IS_QUEUED).order_by(runs.c.number).limit(limit)
    claimed = connection.execute(
        sa.update(runs)
        .where(runs.c.number.in_(oldest))
        .values(
            status=RunStatus.RUNNING,
            worker_id=worker_id,
            lease_ends_at=now() + lease_seconds,
            fence=runs.c.fence + 1,
            num_attempts=runs.c.num_attempts + 1,
            num_events=runs.c.num_events + 1,
            started_at=sa.func.coalesce(runs.c.started_at, now()),
        )
        .returning(*runs.c, now().label("claimed_at"))
    ).all()
    for row in claimed:
        events.append(connection, row, RunEventKind.STARTED, at=row.claimed_at)
    drawn = images_of(connection, [row.id for row in claimed if row.fence > 1])
    ordered = sorted(claimed, key=lambda row: int(row.number))
    return [Claim(run_from(row, drawn.get(row.id, ())), worker_id, row.fence) for row in ordered]


def pulse(
    connection: Connection, worker_id: str, progress: Sequence[Progress], *, lease_seconds: float, renew: bool
) -> Pulse:
    cancel_requested, lost = set(), set()
    lease = {"lease_ends_at": now() + lease_seconds} if renew else {}
    for report in progress:
        held = connection.execute(
            sa.update(runs)
            .where(runs.c.id == report.run_id, runs.c.fence == report.fence, IS_RUNNING)
            .values(
                steps_done=report.steps_done, steps_total=report.steps_total, eta_seconds=report.eta_seconds, **lease
            )
            .returning(runs.c.is_cancel_requested)
        ).first()
        if held is None:
            lost.add(report.run_id)
        elif held.is_cancel_requested:
            cancel_requested.add(report.run_id)
    if renew:
        connection.execute(sa.update(placements).where(placements.c.worker_id == worker_id).values(heard_at=now()))
    return Pulse(frozenset(cancel_requested), frozenset(lost))


def add_image(connection: Connection, claim: Claim, image: ImageRecord) -> None:
    # Raising the number of events checks the fence and locks the run at once.
    row = _write_under(connection, claim, {})
    connection.execute(
        sa.insert(images),
        {
            "run_id": claim.run.id,
            "image_index": image.index,
            "seed": image.seed,
            "output_format": image.output_format,
            "path": image.path,
            "num_bytes": image.num_bytes,
            "sha256": image.sha256,
        },
    )
    events.append(connection, row, RunEventKind.IMAGE, at=row.written_at, image_index=image.index)


def finish(connection: Connection, claim: Claim, outcome: Outcome) -> Run:
    row = end_run(
        connection,
        _is_held_by(claim),
        outcome.status,
        run_time_ms=outcome.run_time_ms,
        error=outcome.error,
        warnings=outcome.warnings,
    )
    if row is None:
        raise _lost(claim)
    return with_images(connection, row)


def release(connection: Connection, claim: Claim) -> None:
    held = connection.execute(sa.select(runs.c.is_cancel_requested).where(_is_held_by(claim)).with_for_update()).first()
    if held is None:
        raise _lost(claim)
    if held.is_cancel_requested:
        end_run(connection, _is_held_by(claim), RunStatus.CANCELLED)
        return
    row = _write_under(connection, claim, {**IDLE, "num_attempts": runs.c.num_attempts - 1})
    events.append(connection, row, RunEventKind.REQUEUED, at=row.written_at)


def requeue_lost(connection: Connection, *, max_attempts: int) -> list[Run]:
    lost = connection.execute(
        sa.select(runs).where(IS_RUNNING, runs.c.lease_ends_at < now()).limit(MAX_REQUEUED).with_for_update()
    ).all()
    return [with_images(connection, _take_back(connection, row, max_attempts=max_attempts)) for row in lost]


def _take_back(connection: Connection, lost: sa.Row[Any], *, max_attempts: int) -> sa.Row[Any]:
    """End a run whose worker is gone, or queue it again where another worker may do better."""
    same = runs.c.number == lost.number
    if lost.is_cancel_requested:
        row = end_run(connection, same, RunStatus.CANCELLED)
    elif lost.num_attempts >= max_attempts:
        message = f"{lost.num_attempts} workers stopped answering while they had this run; see their logs"
        row = end_run(connection, same, RunStatus.FAILED, error=RunError("worker_lost", message))
    else:
        row = _update(connection, same, IDLE)
        if row is not None:
            events.append(connection, row, RunEventKind.REQUEUED, at=row.written_at)
    assert row is not None, "the run was read in this transaction"
    return row


def end_run(
    connection: Connection,
    condition: sa.ColumnElement[bool],
    status: RunStatus,
    *,
    run_time_ms: float | None = None,
    error: RunError | None = None,
    warnings: Sequence[str] | None = None,
) -> sa.Row[Any] | None:
    """End the run that meets `condition`, with its event and its delivery. None when no run does."""
    values: dict[str, object] = {**NO_CLAIM, "status": status, "ended_at": now(), "run_time_ms": run_time_ms}
    if error is not None:
        values |= {"error_code": error.code, "error_message": error.message}
    if warnings is not None:
        values["warnings"] = json.dumps(list(warnings))
    row = _update(connection, condition, values)
    if row is not None:
        events.append(connection, row, RunEventKind(status.value), at=row.ended_at, error=error)
        if row.webhook_endpoint is not None:
            deliveries.add(connection, row)
    return row


def with_images(connection: Connection, row: sa.Row[Any]) -> Run:
    """The run of `row` with its finished pictures."""
    return run_from(row, images_of(connection, [row.id]).get(row.id, ()))


def images_of(connection: Connection, run_ids: Sequence[str]) -> Mapping[str, Sequence[sa.Row[Any]]]:
    """The image rows of some runs, by run, each in order."""
    found: dict[str, list[sa.Row[Any]]] = {}
    if run_ids:
        wanted = sa.select(images).where(images.c.run_id.in_(run_ids)).order_by(images.c.run_id, images.c.image_index)
        for row in connection.execute(wanted):
            found.setdefault(row.run_id, []).append(row)
    return found


def _write_under(connection: Connection, claim: Claim, values: Mapping[str, object]) -> sa.Row[Any]:
    row = _update(connection, _is_held_by(claim), values)
    if row is None:
        raise _lost(claim)
    return row


def _update(
    connection: Connection, condition: sa.ColumnElement[bool], values: Mapping[str, object]
) -> sa.Row[Any] | None:
    """Write to the one run that meets `condition` and make room for one event."""
    return connection.execute(
        sa.update(runs)
        .where(condition)
        .values(num_events=runs.c.num_events + 1, **values)
        .returning(*runs.c, now().label("written_at"))
    ).first()


def _is_held_by(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(runs.c.id == claim.run.id, runs.c.fence == claim.fence, IS_RUNNING)


def _lost(claim: Claim) -> LostClaim:
    return LostClaim(f"{claim.worker_id} no longer has run {claim.run.id}", run_id=claim.run.id)
