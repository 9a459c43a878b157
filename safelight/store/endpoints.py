"""Registered webhook endpoints: who is told of ended runs, with which secrets, and when an endpoint counts as dead."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from safelight.errors import Conflict, FieldError, InvalidFields, NotFound
from safelight.runs import ENDS, DeliveryStatus, EndpointStatus, RunStatus, WebhookEndpoint
from safelight.store.database import Database, now
from safelight.store.hosts import host_of
from safelight.store.keys import named, not_found
from safelight.store.rows import endpoint_from
from safelight.store.schema import IS_PENDING, deliveries, endpoint_secrets, keys, webhook_endpoints
from safelight.store.secret_numbers import OVERLAP_SECONDS, SecretNumbers, derive
from safelight.store.writer import RowLock

MAX_ENDPOINTS = 20
"""Of one project: each costs every ended run a row."""

NUMBERS = SecretNumbers(endpoint_secrets, endpoint_secrets.c.endpoint_id)
ORIGIN = sa.select(keys.c.origin_id).where(keys.c.id == sa.bindparam("this_key", type_=sa.Text)).scalar_subquery()
FOR_RUN = (
    sa.select(webhook_endpoints)
    .where(
        webhook_endpoints.c.project == sa.bindparam("this_project"),
        sa.or_(webhook_endpoints.c.key_id.is_(None), webhook_endpoints.c.key_id == ORIGIN),
    )
    .order_by(webhook_endpoints.c.created_at, webhook_endpoints.c.id)
)


class WebhookEndpoints:
    """The endpoints of all projects. Where a method takes `project`, endpoints of others do not exist; None sees all.

    The database holds no secret: each is derived from the server's own, the endpoint's id and a number.
    """

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret

    async def create(
        self, url: str, *, project: str = "default", events: Iterable[RunStatus] = ENDS, key: str | None = None
    ) -> tuple[WebhookEndpoint, str]:
        """Register a URL that was checked, and its first secret, for the runs of a project; or, where `key` is the id
        or the name of one, for the runs of that key and its successors in its project.

        Raises InvalidFields, NotFound, Conflict. One transaction.
        """
        endpoint = await self._database.write(_create, url, project, _joined(events), key)
        return endpoint, self._derive(endpoint.id, 1)

    async def list(self, *, project: str | None = None) -> list[WebhookEndpoint]:
        """All endpoints, oldest first. One transaction."""
        return await self._database.read(_list, project)

    async def get(self, endpoint_id: str, *, project: str | None = None) -> WebhookEndpoint:
        """One endpoint. Raises NotFound. One transaction."""
        return await self._database.read(_get, endpoint_id, project)

    async def update(
        self,
        endpoint_id: str,
        *,
        project: str | None = None,
        url: str | None = None,
        events: Iterable[RunStatus] | None = None,
        status: EndpointStatus | None = None,
    ) -> WebhookEndpoint:
        """Change what is named; what waits goes to the new URL, or ends when the endpoint is disabled. One transaction.

        Raises NotFound, InvalidFields, Conflict.
        """
        values = {} if events is None else {"events": _joined(events)}
        first = row_of(endpoint_id)
        return await self._database.write_locking(first, _update, endpoint_id, project, values, url=url, status=status)

    async def remove(self, endpoint_id: str, *, project: str | None = None) -> None:
        """Forget an endpoint; what was on its way to it ends as failed. Raises NotFound. One transaction."""
        await self._database.write_locking(row_of(endpoint_id), _remove, endpoint_id, project)

    async def rotate(
        self, endpoint_id: str, *, project: str | None = None, overlap_seconds: float = OVERLAP_SECONDS
    ) -> tuple[WebhookEndpoint, str]:
        """A new secret; the one before signs beside it for the overlap. Raises NotFound. One transaction."""
        first = row_of(endpoint_id)
        endpoint, number = await self._database.write_locking(first, _rotate, endpoint_id, project, overlap_seconds)
        return endpoint, self._derive(endpoint_id, number)

    async def secrets(self, endpoint_id: str, *, project: str | None = None) -> tuple[str, ...]:
        """The secrets that sign now, newest first. Raises NotFound. One transaction."""
        numbers = await self._database.read(_live_numbers, endpoint_id, project)
        return tuple(self._derive(endpoint_id, number) for number in numbers)

    def _derive(self, endpoint_id: str, number: int) -> str:
        return derive(self._secret, f"webhook-endpoint:{endpoint_id}:{number}")


def row_of(endpoint_id: str) -> RowLock:
    """What everything locks first that changes an endpoint."""
    return "webhook_endpoints", endpoint_id


def wanting(connection: Connection, project: str, key_id: str | None, end: str) -> list[sa.Row[Any]]:
    """The endpoints, disabled ones too, that want to be told of runs of this project and key that end so."""
    found = connection.execute(FOR_RUN, {"this_project": project, "this_key": key_id}).all()
    return [row for row in found if end in row.events.split()]


def note(connection: Connection, at: tuple[str, str], *, is_success: bool, is_gone: bool, disable_after: float) -> None:
    """Remember how a try went at the endpoint of an id, where it still has that URL; disable it, and end what is on its
    way to it, where that follows."""
    endpoint_id, url = at
    is_this = sa.and_(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.url == url)
    if is_success:
        has_failed = webhook_endpoints.c.failing_since.is_not(None)
        connection.execute(sa.update(webhook_endpoints).where(is_this, has_failed).values(failing_since=None))
        return
    failing_since = sa.func.coalesce(webhook_endpoints.c.failing_since, now())
    failing = sa.update(webhook_endpoints).where(is_this).values(failing_since=failing_since)
    row = connection.execute(failing.returning(webhook_endpoints, (now() - failing_since).label("seconds"))).first()
    if row is None or row.status != EndpointStatus.ENABLED:
        return
    if is_gone:
        _disable(connection, endpoint_id, "it answered 410 Gone")
    elif row.seconds >= disable_after:
        _disable(connection, endpoint_id, f"every try of the last {row.seconds / 86400:.1f} days failed")


def address_of(connection: Connection, endpoint_id: str, project: str | None) -> dict[str, object]:
    """Where an endpoint is now, as columns of a delivery. Raises NotFound; Conflict unless it takes deliveries."""
    row = _row(connection, endpoint_id, project)
    if row.status != EndpointStatus.ENABLED:
        raise Conflict(f"the endpoint is disabled ({row.status_reason}); enable it first")
    return {"url": row.url, "host": row.host}


def _create(connection: Connection, url: str, project: str, events: str, key: str | None) -> WebhookEndpoint:
    key_id = None
    if key is not None:
        project, key_id = _line_of(connection, key)
    of_project = webhook_endpoints.c.project == project
    count = connection.execute(sa.select(sa.func.count()).select_from(webhook_endpoints).where(of_project)).scalar_one()
    if count >= MAX_ENDPOINTS:
        raise Conflict(f"a project has at most {MAX_ENDPOINTS} webhook endpoints; remove one first")
    columns = {
        "id": str(uuid.uuid4()),
        "project": project,
        "url": url,
        "host": host_of(url),
        "events": events,
        "status": EndpointStatus.ENABLED,
        "status_reason": "",
        "secret_number": 1,
        "key_id": key_id,
    }
    new = sa.insert(webhook_endpoints).values(created_at=now(), **columns).returning(webhook_endpoints)
    try:
        row = connection.execute(new).one()
    except IntegrityError as error:
        raise _taken() from error
    NUMBERS.add(connection, row.id, row.secret_number)
    return endpoint_from(row)


def _line_of(connection: Connection, key: str) -> tuple[str, str]:
    """The project of a key, and the id of the first of its line. Raises NotFound."""
    row = connection.execute(sa.select(keys.c.project, keys.c.origin_id).where(named(key))).first()
    if row is None:
        raise not_found()
    return row.project, row.origin_id


def _list(connection: Connection, project: str | None) -> list[WebhookEndpoint]:
    query = sa.select(webhook_endpoints).order_by(webhook_endpoints.c.created_at, webhook_endpoints.c.id)
    if project is not None:
        query = query.where(webhook_endpoints.c.project == project)
    found = connection.execute(query).all()
    ends = NUMBERS.ends_of_previous(connection, [row.id for row in found])
    return [endpoint_from(row, previous_secret_ends_at=ends.get(row.id)) for row in found]


def _get(connection: Connection, endpoint_id: str, project: str | None) -> WebhookEndpoint:
    return _whole(connection, _row(connection, endpoint_id, project))


def _update(
    connection: Connection,
    endpoint_id: str,
    project: str | None,
    values: Mapping[str, object],
    *,
    url: str | None,
    status: EndpointStatus | None,
) -> WebhookEndpoint:
    row = _row(connection, endpoint_id, project)
    changed = dict(values)
    if url is not None:
        changed |= {"url": url, "host": host_of(url), "failing_since": None}
    if status is EndpointStatus.ENABLED and row.status != status:
        changed |= {"status": status, "status_reason": "", "failing_since": None}
    if changed:
        try:
            connection.execute(sa.update(webhook_endpoints).where(webhook_endpoints.c.id == row.id).values(changed))
        except IntegrityError as error:
            raise _taken() from error
    if url is not None:
        is_waiting = sa.and_(deliveries.c.endpoint_id == row.id, IS_PENDING)
        connection.execute(sa.update(deliveries).where(is_waiting).values(url=url, host=host_of(url)))
    if status is EndpointStatus.DISABLED and row.status != status:
        _disable(connection, row.id, "by request")
    return _whole(connection, _row(connection, endpoint_id, project))


def _remove(connection: Connection, endpoint_id: str, project: str | None) -> None:
    row = _row(connection, endpoint_id, project)
    connection.execute(sa.delete(webhook_endpoints).where(webhook_endpoints.c.id == row.id))
    _end_pending(connection, row.id, "the endpoint was removed")


def _rotate(
    connection: Connection, endpoint_id: str, project: str | None, overlap_seconds: float
) -> tuple[WebhookEndpoint, int]:
    _row(connection, endpoint_id, project)
    next_number = {"secret_number": webhook_endpoints.c.secret_number + 1}
    is_this = webhook_endpoints.c.id == endpoint_id
    row = connection.execute(
        sa.update(webhook_endpoints).where(is_this).values(next_number).returning(webhook_endpoints)
    ).one()
    NUMBERS.end(connection, endpoint_id, overlap_seconds)
    NUMBERS.add(connection, endpoint_id, row.secret_number)
    return _whole(connection, row), row.secret_number


def _live_numbers(connection: Connection, endpoint_id: str, project: str | None) -> list[int]:
    _row(connection, endpoint_id, project)
    return NUMBERS.live(connection, endpoint_id)


def _disable(connection: Connection, endpoint_id: str, reason: str) -> None:
    values = {"status": EndpointStatus.DISABLED, "status_reason": reason}
    connection.execute(sa.update(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id).values(values))
    _end_pending(connection, endpoint_id, f"the endpoint was disabled: {reason}")


def _end_pending(connection: Connection, endpoint_id: str, reason: str) -> None:
    is_waiting = sa.and_(deliveries.c.endpoint_id == endpoint_id, IS_PENDING)
    values = {"status": DeliveryStatus.FAILED, "reason": reason, "next_attempt_at": None}
    connection.execute(sa.update(deliveries).where(is_waiting).values(values))


def _row(connection: Connection, endpoint_id: str, project: str | None) -> sa.Row[Any]:
    query = sa.select(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id)
    row = connection.execute(query if project is None else query.where(webhook_endpoints.c.project == project)).first()
    if row is None:
        message = "there is no such webhook endpoint; list them with `safelight webhooks endpoints`"
        raise NotFound(message, code="endpoint_not_found")
    return row


def _whole(connection: Connection, row: sa.Row[Any]) -> WebhookEndpoint:
    return endpoint_from(row, previous_secret_ends_at=NUMBERS.ends_of_previous(connection, [row.id]).get(row.id))


def _joined(events: Iterable[RunStatus]) -> str:
    wanted = frozenset(events)
    if not wanted or wanted - ENDS:
        known = ", ".join(sorted(ENDS))
        raise InvalidFields([FieldError("events", f"an endpoint needs at least one of {known}, and nothing else")])
    return " ".join(sorted(wanted))


def _taken() -> Conflict:
    return Conflict("this URL is an endpoint of the project already; change that one, or remove it")
