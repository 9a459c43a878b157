"""Ends of runs on their way to webhook endpoints: what is due, what came of each attempt, when to try again."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.envelope import Ended, webhook_body
from safelight.errors import Conflict, NotFound
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus, EndpointStatus, RunStatus
from safelight.store import endpoints
from safelight.store.database import Database, now
from safelight.store.hosts import host_of
from safelight.store.late import add_hint
from safelight.store.rows import delivery_from, error_from
from safelight.store.schema import IS_PENDING, attempts, deliveries, runs, webhook_endpoints

GONE = 410

CAN_BE_TOLD = sa.or_(runs.c.status != RunStatus.SUCCEEDED, runs.c.images_expired_at.is_(None))
"""The run still has what a delivery about it must hold."""

TRIED_SINCE = sa.exists().where(attempts.c.delivery_id == deliveries.c.id, attempts.c.at >= sa.bindparam("since"))

IS_STRAY = (
    sa.exists()
    .where(webhook_endpoints.c.id == deliveries.c.endpoint_id)
    .where(
        sa.or_(
            webhook_endpoints.c.url != deliveries.c.url,
            webhook_endpoints.c.status != EndpointStatus.ENABLED,
        )
    )
)
"""Made, on PostgreSQL, while its endpoint was moved or disabled, by a transaction that did not see that yet."""

DUE_AGAIN: Mapping[str, Any] = {
    "status": DeliveryStatus.PENDING,
    "reason": "",
    "next_attempt_at": now(),
    "num_attempts_before_resend": deliveries.c.num_attempts,
}

WAS_DISABLED: dict[str, object] = {
    "status": DeliveryStatus.FAILED,
    "next_attempt_at": None,
    "reason": "the endpoint was disabled",
}


@dataclass(frozen=True, slots=True)
class Hosts:
    """Which hosts are meant: not those `without`, and where `only` names any, no others."""

    without: Collection[str] = ()
    only: Collection[str] | None = None


ANY_HOST = Hosts()


class Deliveries:
    """The deliveries of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim_due(self, hosts: Hosts = ANY_HOST, *, limit: int, lease_seconds: float) -> list[Delivery]:
        """Take deliveries that are due, the longest due first; for `lease_seconds` nobody else gets
        them. One transaction."""
        return await self._database.write(_claim_due, limit, lease_seconds, hosts)

    async def release(self, claimed: Sequence[Delivery]) -> None:
        """Give back what `claim_due` gave and was not sent: it is due at once, unless its lease has
        ended. One transaction."""
        if claimed:
            await self._database.write(_release, claimed)

    async def record(
        self,
        delivery: Delivery,
        attempt: DeliveryAttempt,
        *,
        retry_seconds: Sequence[float],
        delivered: bool,
        give_up: bool,
        retry_after_seconds: float | None,
        disable_after_seconds: float | None = None,
    ) -> Delivery:
        """Keep what came of an attempt and decide what is next. Raises NotFound. One transaction.

        The attempt gets the next number whatever `attempt.number` says. `retry_seconds[n]` is the wait before try n,
        the first being 0; it and `retry_after_seconds` both hold. What has arrived, or was ended meanwhile, stays so. A
        registered endpoint that only failed for `disable_after_seconds`, or says 410, is disabled; None: the attempt
        says nothing about the endpoint, as none does to an address that it has left since.
        """
        schedule = _Schedule(retry_seconds, retry_after_seconds or 0.0, disable_after_seconds)
        first = endpoints.row_of(delivery.endpoint_id or "")
        return await self._database.write_locking(
            first, _record, delivery, attempt, schedule, delivered=delivered, give_up=give_up
        )

    async def get(self, delivery_id: str, *, project: str | None = None) -> Delivery:
        """One delivery with its attempts; any project's when `project` is None. Raises NotFound. One transaction."""
        return await self._database.read(_get, delivery_id, project)

    async def list(
        self,
        *,
        project: str | None = None,
        run_id: str | None = None,
        endpoint_id: str | None = None,
        status: DeliveryStatus | None = None,
        before: tuple[float, str] | None = None,
        limit: int = 50,
    ) -> list[Delivery]:
        """Deliveries with their attempts, newest first; `before` is time and id of the last one seen.
        One transaction."""
        query = sa.select(deliveries).order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit)
        for column, wanted in (
            (deliveries.c.project, project),
            (deliveries.c.run_id, run_id),
            (deliveries.c.endpoint_id, endpoint_id),
            (deliveries.c.status, status),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        if before is not None:
            query = query.where(sa.tuple_(deliveries.c.created_at, deliveries.c.id) < sa.tuple_(*before))
        return await self._database.read(_list, query)

    async def resend(self, delivery_id: str, *, project: str | None = None) -> Delivery:
        """Make a delivery due now, with a whole schedule of tries; its attempts are kept. One transaction.

        Raises NotFound; Conflict when what it would send is gone, or its endpoint is disabled.
        """
        return await self._database.write(_resend, delivery_id, project)

    async def resend_since(
        self, endpoint_id: str, since: float, *, project: str | None = None, include_delivered: bool = False
    ) -> int:
        """Make everything due again that failed at an endpoint since a time, or all that was due or tried since then.
        How many. One transaction.

        What can no longer be sent is left out. Raises NotFound, Conflict when the endpoint is disabled.
        """
        return await self._database.write(_resend_since, endpoint_id, since, project, include_delivered)

    async def seconds_to_next(self, hosts: Hosts = ANY_HOST) -> float | None:
        """How long until a delivery is due (0 when one is), None when none is pending. One transaction."""
        return await self._database.read(_seconds_to_next, hosts)


@dataclass(frozen=True, slots=True)
class _Schedule:
    retry_seconds: Sequence[float]
    wait: float
    disable_after_seconds: float | None


def add(connection: Connection, run: sa.Row[Any]) -> None:
    """Deliveries, due now, for the run of a row that has just ended: to its own URL, and to each endpoint that wants
    it.

    `has_endpoints` of that row tells whether its project has any.
    Their event id can be told from the run's. One to a disabled endpoint has failed already, and can be resent later.
    """
    if run.webhook_endpoint is None and not run.has_endpoints:
        return
    told = _told(run)
    new = []
    if run.webhook_endpoint is not None:
        new.append(_columns(run, run.webhook_endpoint, host_of(run.webhook_endpoint)) | told)
    wanting = endpoints.wanting(connection, run.project, run.key_id, run.status) if run.has_endpoints else ()
    for endpoint in wanting:
        columns = _columns(run, endpoint.url, endpoint.host) | told | {"endpoint_id": endpoint.id}
        if endpoint.status != EndpointStatus.ENABLED:
            columns |= WAS_DISABLED
        new.append(columns)
    if new:
        connection.execute(sa.insert(deliveries), new)
        add_hint(connection, "deliveries")


def end_with_run(connection: Connection, run_ids: Sequence[str]) -> None:
    """End what is on its way for runs that are deleted in this transaction."""
    is_waiting = sa.and_(deliveries.c.run_id.in_(run_ids), IS_PENDING)
    values = {"status": DeliveryStatus.FAILED, "reason": "the run was deleted", "next_attempt_at": None}
    connection.execute(sa.update(deliveries).where(is_waiting).values(values))


def _told(run: sa.Row[Any]) -> dict[str, object]:
    """The body as it is now, so that a later version of the server tells every try the same."""
    ended = Ended(id=run.id, status=RunStatus(run.status), run_time_ms=run.run_time_ms, error=error_from(run))
    return {"told": webhook_body(ended).decode()}


def _columns(run: sa.Row[Any], url: str, host: str) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "event_id": "evt_" + run.id.replace("-", ""),
        "run_id": run.id,
        "project": run.project,
        "endpoint_id": None,
        "url": url,
        "host": host,
        "status": DeliveryStatus.PENDING,
        "reason": "",
        "created_at": run.ended_at,
        "next_attempt_at": run.ended_at,
        "num_attempts": 0,
        "num_attempts_before_resend": 0,
    }


def _claim_due(connection: Connection, limit: int, lease_seconds: float, hosts: Hosts) -> list[Delivery]:
    due = (
        sa.select(deliveries.c.id, IS_STRAY.label("is_stray"))
        .where(IS_PENDING, deliveries.c.next_attempt_at <= now(), *_is_for(hosts))
        .order_by(deliveries.c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = connection.execute(due).all()
    ids = [row.id for row in found if not row.is_stray or _bring_back(connection, row.id)]
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


def _bring_back(connection: Connection, delivery_id: str) -> bool:
    """Send a stray delivery to where its endpoint is now, or end it; whether it is still to be sent."""
    row = _row(connection, delivery_id)
    try:
        values = endpoints.address_of(connection, row.endpoint_id, None)
    except Conflict:
        values = WAS_DISABLED
    return bool(_change(connection, deliveries.c.id == delivery_id, values).status == DeliveryStatus.PENDING)


def _release(connection: Connection, claimed: Sequence[Delivery]) -> None:
    for delivery in claimed:
        # The end of the lease tells this claim from a later one.
        is_held = sa.and_(deliveries.c.id == delivery.id, deliveries.c.next_attempt_at == delivery.next_attempt_at)
        connection.execute(sa.update(deliveries).where(is_held, IS_PENDING).values(next_attempt_at=now()))
    add_hint(connection, "deliveries")


def _record(
    connection: Connection,
    tried: Delivery,
    attempt: DeliveryAttempt,
    schedule: _Schedule,
    *,
    delivered: bool,
    give_up: bool,
) -> Delivery:
    if tried.endpoint_id is not None and schedule.disable_after_seconds is not None:
        # Before the delivery is locked: who disables an endpoint locks it first, and its deliveries then.
        is_gone, limit = attempt.status_code == GONE, schedule.disable_after_seconds
        at = (tried.endpoint_id, tried.url)
        endpoints.note(connection, at, is_success=delivered, is_gone=is_gone, disable_after=limit)
    row = _change(connection, deliveries.c.id == tried.id, {"num_attempts": deliveries.c.num_attempts + 1})
    _add_attempt(connection, row, attempt)
    num_tries = row.num_attempts - row.num_attempts_before_resend
    if delivered or row.status == DeliveryStatus.DELIVERED:
        values: dict[str, object] = {"status": DeliveryStatus.DELIVERED, "next_attempt_at": None, "reason": ""}
    elif row.status == DeliveryStatus.FAILED:
        values = {"next_attempt_at": None}
    elif (give_up and row.url == tried.url) or num_tries >= len(schedule.retry_seconds):
        values = {"status": DeliveryStatus.FAILED, "next_attempt_at": None}
    else:
        values = {"next_attempt_at": now() + max(schedule.retry_seconds[num_tries], schedule.wait)}
    return _with_attempts(connection, [_change(connection, deliveries.c.id == tried.id, values)])[0]


def _add_attempt(connection: Connection, row: sa.Row[Any], attempt: DeliveryAttempt) -> None:
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


def _get(connection: Connection, delivery_id: str, project: str | None) -> Delivery:
    return _with_attempts(connection, [_row(connection, delivery_id, project)])[0]


def _row(connection: Connection, delivery_id: str, project: str | None = None) -> sa.Row[Any]:
    row = connection.execute(sa.select(deliveries).where(_is_visible(delivery_id, project))).first()
    if row is None:
        raise _not_found()
    return row


def _list(connection: Connection, query: sa.Select[Any]) -> list[Delivery]:
    return _with_attempts(connection, connection.execute(query).all())


def _resend(connection: Connection, delivery_id: str, project: str | None) -> Delivery:
    row = _change(connection, _is_visible(delivery_id, project), DUE_AGAIN)
    if row.endpoint_id is not None:
        # It goes to where the endpoint is now.
        address = endpoints.address_of(connection, row.endpoint_id, project)
        row = _change(connection, deliveries.c.id == row.id, address)
    if connection.execute(sa.select(runs.c.id).where(runs.c.id == row.run_id, CAN_BE_TOLD)).first() is None:
        raise Conflict("the run or its images are gone, so there is nothing to send", run_id=row.run_id)
    add_hint(connection, "deliveries")
    return _with_attempts(connection, [row])[0]


def _resend_since(
    connection: Connection, endpoint_id: str, since: float, project: str | None, include_delivered: bool
) -> int:
    address = endpoints.address_of(connection, endpoint_id, project)
    add_hint(connection, "deliveries")
    wanted = [DeliveryStatus.FAILED, *([DeliveryStatus.DELIVERED] if include_delivered else [])]
    is_wanted = sa.and_(
        deliveries.c.endpoint_id == endpoint_id,
        # What was due before a receiver went away may have been tried, and lost, since.
        sa.or_(deliveries.c.created_at >= since, TRIED_SINCE),
        deliveries.c.status.in_(wanted),
        sa.exists().where(runs.c.id == deliveries.c.run_id, CAN_BE_TOLD),
    )
    again = sa.update(deliveries).where(is_wanted).values({**DUE_AGAIN, **address})
    return connection.execute(again, {"since": since}).rowcount


def _seconds_to_next(connection: Connection, hosts: Hosts) -> float | None:
    earliest = sa.select(sa.func.min(deliveries.c.next_attempt_at))
    nearest = earliest.where(IS_PENDING, *_is_for(hosts)).scalar_subquery()
    seconds: float | None = connection.execute(sa.select(nearest - now())).scalar()
    return None if seconds is None else max(0.0, seconds)


def _is_for(hosts: Hosts) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [deliveries.c.host.not_in(hosts.without)] if hosts.without else []
    return conditions if hosts.only is None else [*conditions, deliveries.c.host.in_(hosts.only)]


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
