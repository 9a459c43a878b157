"""How runs enter the queue, and how much waits there. Transactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import IdempotencyMismatch, Overloaded
from safelight.keys import Allowance
from safelight.runs import NewRun, Run, RunEventKind, RunStatus
from safelight.store import claims, events, inputs, ledger
from safelight.store.database import now
from safelight.store.deadlines import check_deadline
from safelight.store.late import add_hint
from safelight.store.prepared import Prepared
from safelight.store.rows import to_json
from safelight.store.schema import HAS_ENDED, IS_QUEUED, IS_RUNNING, runs

NUM_RECENT_RUNS = 20
ROOM_SHARE = 0.1
"""A caller that was refused comes back when this share of the queue should be gone."""

COUNT_QUEUED = sa.select(sa.func.count()).select_from(runs).where(IS_QUEUED)
COUNT_RUNNING = sa.select(sa.func.count()).select_from(runs).where(IS_RUNNING)
DEADLINE = now() + sa.bindparam("deadline_seconds", type_=sa.Double)
GIVEN = (
    *("id", "project", "key_id", "deployment", "deployment_version", "params", "webhook_endpoint", "idempotency_key"),
    *("body_digest", "traceparent", "num_images", "pixel_steps", "weight", "rank"),
)
FRESH = {
    **{name: sa.literal_column("0") for name in ("fence", "num_attempts", "steps_done", "steps_total")},
    "num_events": sa.literal_column("1"),
    "is_cancel_requested": sa.false(),
    "warnings": sa.literal_column("'[]'"),
    "status": sa.literal_column("'queued'"),
}
NEW = {
    **{name: sa.bindparam(name, type_=runs.c[name].type) for name in GIVEN},
    **FRESH,
    "created_at": now(),
    "deadline_at": DEADLINE,
}
HAS_ROOM = COUNT_QUEUED.scalar_subquery() < sa.bindparam("max_queued", type_=sa.BigInteger)
# The insert counts for itself what waits. To ask before would be one more way to the database and back.
QUEUE = Prepared(
    sa.insert(runs)
    .from_select(list(NEW), sa.select(*NEW.values()).where(HAS_ROOM))
    .returning(runs.c.id, runs.c.num_events, runs.c.created_at, runs.c.deadline_at, runs.c.webhook_endpoint)
)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits. `queue_eta_seconds` is when the last queued run should start; None until a run has ended."""

    num_queued: int
    num_running: int
    queue_eta_seconds: float | None


def made_by(connection: Connection, project: str, idempotency_key: str, body_digest: str | None) -> Run | None:
    """The run that an earlier request of this key made."""
    same = sa.and_(runs.c.project == project, runs.c.idempotency_key == idempotency_key)
    made = connection.execute(sa.select(runs).where(same)).first()
    if made is None:
        return None
    if made.body_digest != body_digest:
        message = "this idempotency key was used with another body; use a fresh key for another request"
        raise IdempotencyMismatch(message, run_id=made.id)
    return claims.with_images(connection, made)


def create(connection: Connection, new: NewRun, *, max_queued: int) -> tuple[Run, bool]:
    """A new run, queued, and True; or the one that its idempotency key made, and False."""
    if new.idempotency_key is not None:
        made = made_by(connection, new.project, new.idempotency_key, new.body_digest)
        if made is not None:
            return made, False
    allowance = ledger.check(connection, new, seconds_to_room=lambda: _seconds_to_room(connection))
    check_deadline(connection, new, seconds_to_start=lambda: backlog(connection).queue_eta_seconds or 0.0)
    row = QUEUE.execute(connection, {**_columns(new, allowance), "max_queued": max_queued}).first()
    if row is None:
        num_queued = connection.execute(COUNT_QUEUED).scalar_one()
        message = f"{num_queued} runs wait already; send the same again later"
        raise Overloaded(message, retry_after_seconds=_seconds_to_room(connection))
    add_hint(connection, "queue")
    inputs.add(connection, new.id, new.inputs)
    events.append(connection, row, events.Fact(RunEventKind.QUEUED), at=row.created_at)
    return _as_queued(row, new, allowance), True


def _as_queued(row: sa.Row[Any], new: NewRun, allowance: Allowance) -> Run:
    """The run that was made of `new`; read back is only what the database knows better."""
    return Run(
        id=new.id,
        project=new.project,
        key_id=new.key_id,
        deployment=new.deployment,
        deployment_version=new.deployment_version,
        params=new.params,
        status=RunStatus.QUEUED,
        created_at=row.created_at,
        weight=allowance.weight,
        priority=allowance.priority,
        deadline_at=row.deadline_at,
        webhook_endpoint=row.webhook_endpoint,
        traceparent=new.traceparent,
    )


def _columns(new: NewRun, allowance: Allowance) -> dict[str, object]:
    return {
        "id": new.id,
        "project": new.project,
        "key_id": new.key_id,
        "deployment": new.deployment,
        "deployment_version": new.deployment_version,
        "params": to_json(new.params),
        "deadline_seconds": None if new.deadline_ms is None else new.deadline_ms / 1000.0,
        "webhook_endpoint": new.webhook_endpoint,
        "idempotency_key": new.idempotency_key,
        "body_digest": new.body_digest,
        "traceparent": new.traceparent,
        "num_images": new.params.num_images_per_prompt,
        "pixel_steps": new.params.pixel_steps,
        "weight": allowance.weight,
        "rank": -allowance.priority,
    }


def position(connection: Connection, run_id: str) -> int | None:
    """How many runs are claimed before this one; None when it is not queued."""
    turn = (runs.c.rank, runs.c.created_at, runs.c.number)
    this = connection.execute(sa.select(*turn).where(runs.c.id == run_id, IS_QUEUED)).first()
    if this is None:
        return None
    return connection.execute(COUNT_QUEUED.where(sa.tuple_(*turn) < sa.tuple_(*this))).scalar_one()


def backlog(connection: Connection) -> Backlog:
    """How much waits, judged by the runs that ended last."""
    recent = (
        sa.select(runs.c.run_time_ms).where(HAS_ENDED).order_by(runs.c.ended_at.desc()).limit(NUM_RECENT_RUNS)
    ).subquery()
    figures = connection.execute(
        sa.select(
            COUNT_QUEUED.scalar_subquery(),
            COUNT_RUNNING.scalar_subquery(),
            # Runs that never came to a device say nothing of how long the others take.
            sa.select(sa.func.avg(sa.func.nullif(recent.c.run_time_ms, 0.0))).scalar_subquery(),
        )
    ).one()
    num_queued, num_running, mean_ms = figures
    # Runs that are drawn together each count the whole time, so as many end per mean time as run at once.
    eta = None if mean_ms is None else num_queued * mean_ms / 1000.0 / max(1, num_running)
    return Backlog(num_queued, num_running, eta)


def _seconds_to_room(connection: Connection) -> float:
    wait = ROOM_SHARE * (backlog(connection).queue_eta_seconds or 0.0)
    return max(1.0, min(300.0, wait))
