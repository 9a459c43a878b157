"""Ends of runs on their way to webhook endpoints: what is due, what came of each attempt, when to try again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import NotFound
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus
from safelight.store.database import Database, now
from safelight.store.notifications import Notifications
from safelight.store.rows import delivery_from
from safelight.store.schema import IS_PENDING, attempts, deliveries


class Deliveries:
    """The deliveries of all projects."""

    def __init__(self, database: Database, notifications: Notifications) -> None:
        self._database = database
        self._notifications = notifications

    async def claim_due(self, *, limit: int, lease_seconds: float) -> list[Delivery]:
        """Take deliveries that are due, the longest due first; for `lease_seconds` nobody else gets them. One transaction."""
        return await self._database.write(_claim_due, limit=limit, lease_seconds=lease_seconds)

    async def record(
        self,
        delivery_id: str,
        attempt: DeliveryAttempt,
        *,
        retry_seconds: Sequence[float],
        delivered: bool,
        give_up: bool,
        retry_after_seconds: float | None,
    ) -> Delivery:
        """Keep what came of an attempt and decide what is next. One transaction.

        The attempt gets the next number whatever `attempt.number` says. `retry_seconds[n]` is the wait before try
        n, the first being 0; it and `retry_after_seconds` both hold. A delivery that has arrived stays so.
        """
        wait = retry_after_seconds or 0.0
        return await self._database.write(
            _record, delivery_id, attempt, retry_seconds=retry_seconds, delivered=delivered, give_up=give_up, wait=wait
        )

    async def get(self, delivery_id: str, *, project: str | None = None) -> Delivery:
        """One delivery with its attempts; any project's when `project` is None. Raises NotFound. One transaction."""
        return await self._database.read(_get, delivery_id, project)

    async def list(
        self,
        *,
        project: str | None = None,
        run_id: str | None = None,
        status: DeliveryStatus | None = None,
        limit: int = 50,
    ) -> list[Delivery]:
        """Deliveries with their attempts, newest first. One transaction."""
        return await self._database.read(_list, project=project, run_id=run_id, status=status, limit=limit)

    async def resend(self, delivery_id: str, *, project: str | None = None) -> Delivery:
        """Make a delivery due now, with a whole schedule of tries; its attempts are kept. Raises NotFound. One transaction."""
        delivery = await self._database.write(_resend, delivery_id, project)
        self._notifications.publish("deliveries")
        return delivery

    async def seconds_to_next(self) -> float | None:
        """How long until a delivery is due (0 when one is), None when none is pending. One transaction."""
        return await self._database.read(_seconds_to_next)


def add(connection: Connection, run: sa.Row[Any]) -> None:
    """A delivery, due now, for the run of a row that has just ended. Its event id can be told from the run's."""
    connection.execute(
        sa.insert(deliveries),
        {
            "id": str(uuid.uuid4()),
            "event_id": "evt_" + run.id.replace("-", ""),
            "run_id": run.id,
            "project": run.project,
            "url": run.webhook_endpoint,
            "status": DeliveryStatus.PENDING,
            "created_at": run.ended_at,
            "next_attempt_at": run.ended_at,
            "num_attempts": 0,
            "num_attempts_before_resend": 0,
        },
    )


def _claim_due(connection: Connection, *, limit: int, lease_seconds: float) -> list[Delivery]:
    due = (
        sa.select(deliveries.c.id, deliveries.c.next_attempt_at)
        .where(IS_PENDING, deliveries.c.next_attempt_at <= now())
        .order_by(deliveries.c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = [row.id for row in connection.execute(due)]
    if not ids:
        return []
    # Whoever took it and then dies has not sent it: it is due again when the lease ends.
    taken = connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(next_attempt_at=now() + lease_seconds)
        .returning(*deliveries.c)
    ).all()
    return _with_attempts(connection, sorted(taken, key=lambda row: ids.index(row.id)))


def _record(
    connection: Connection,
    delivery_id: str,
    attempt: DeliveryAttempt,
    *,
    retry_seconds: Sequence[float],
    delivered: bool,
    give_up: bool,
    wait: float,
) -> Delivery:
    row = _change(connection, deliveries.c.id == delivery_id, {"num_attempts": deliveries.c.num_attempts + 1})
    connection.execute(
        sa.insert(attempts),
        {
            "delivery_id": row.id,
            "number": row.num_attempts,
            "at": attempt.at,
            "duration_ms": attempt.duration_ms,
            "status_code": attempt.status_code,
            "error": attempt.error,
            "response_excerpt": attempt.response_excerpt,
        },
    )
    num_tries = row.num_attempts - row.num_attempts_before_resend
    if delivered or row.status == DeliveryStatus.DELIVERED:
        values: dict[str, object] = {"status": DeliveryStatus.DELIVERED, "next_attempt_at": None}
    elif give_up or num_tries >= len(retry_seconds):
        values = {"status": DeliveryStatus.FAILED, "next_attempt_at": None}
    else:
        values = {"next_attempt_at": now() + max(retry_seconds[num_tries], wait)}
    return _with_attempts(connection, [_change(connection, deliveries.c.id == delivery_id, values)])[0]


def _get(connection: Connection, delivery_id: str, project: str | None) -> Delivery:
    row = connection.execute(sa.select(deliveries).where(_is_visible(delivery_id, project))).first()
    if row is None:
        raise _not_found()
    return _with_attempts(connection, [row])[0]


def _list(
    connection: Connection, *, project: str | None, run_id: str | None, status: DeliveryStatus | None, limit: int
) -> list[Delivery]:
    query = sa.select(deliveries).order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit)
    for column, wanted in (
        (deliveries.c.project, project),
        (deliveries.c.run_id, run_id),
        (deliveries.c.status, status),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    return _with_attempts(connection, connection.execute(query).all())


def _resend(connection: Connection, delivery_id: str, project: str | None) -> Delivery:
    values = {
        "status": DeliveryStatus.PENDING,
        "next_attempt_at": now(),
        "num_attempts_before_resend": deliveries.c.num_attempts,
    }
    return _with_attempts(connection, [_change(connection, _is_visible(delivery_id, project), values)])[0]


def _seconds_to_next(connection: Connection) -> float | None:
    nearest = sa.select(sa.func.min(deliveries.c.next_attempt_at)).where(IS_PENDING).scalar_subquery()
    seconds: float | None = connection.execute(sa.select(nearest - now())).scalar()
    return None if seconds is None else max(0.0, seconds)


def _change(connection: Connection, condition: sa.ColumnElement[bool], values: Mapping[str, object]) -> sa.Row[Any]:
    row = connection.execute(sa.update(deliveries).where(condition).values(**values).returning(*deliveries.c)).first()
    if row is None:
        raise _not_found()
    return row


def _is_visible(delivery_id: str, project: str | None) -> sa.ColumnElement[bool]:
    same = deliveries.c.id == delivery_id
    return same if project is None else sa.and_(same, deliveries.c.project == project)


def _with_attempts(connection: Connection, rows: Sequence[sa.Row[Any]]) -> list[Delivery]:
    found: dict[str, list[sa.Row[Any]]] = {row.id: [] for row in rows}
    tried = [row.id for row in rows if row.num_attempts]
    if tried:
        wanted = sa.select(attempts).where(attempts.c.delivery_id.in_(tried))
        for attempt in connection.execute(wanted.order_by(attempts.c.number)):
            found[attempt.delivery_id].append(attempt)
    return [delivery_from(row, found[row.id]) for row in rows]


def _not_found() -> NotFound:
    return NotFound("there is no such delivery; list them with `safelight webhooks list`", code="delivery_not_found")
