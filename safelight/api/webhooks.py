"""What a caller may do with registered webhook endpoints and with deliveries: those of the key's own project."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from safelight.api.params import checked_id, is_id
from safelight.errors import FieldError, InvalidFields
from safelight.keys import Key
from safelight.runs import ENDS, Delivery, DeliveryStatus, EndpointStatus, RunStatus, WebhookEndpoint
from safelight.store import ProjectSecret, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    """Which deliveries to list. None: any."""

    endpoint_id: str | None = None
    run_id: str | None = None
    status: DeliveryStatus | None = None


class Webhooks:
    """The endpoints and deliveries of callers. What belongs to another project does not exist."""

    def __init__(self, store: Store, *, check_url: Callable[[str], None]) -> None:
        self._store = store
        self._check_url = check_url

    async def endpoints(self, key: Key) -> Sequence[WebhookEndpoint]:
        """All of them, oldest first."""
        return await self._store.webhook_endpoints.list(project=key.project)

    async def create(
        self, key: Key, url: str, *, events: Iterable[RunStatus] | None = None, is_own: bool = False
    ) -> tuple[WebhookEndpoint, str]:
        """A new endpoint and its secret: for the project's runs, or the key's own. Raises InvalidFields, Conflict."""
        self.check(url)
        wanted = ENDS if events is None else events
        return await self._store.webhook_endpoints.create(
            url, project=key.project, events=wanted, key=key.id if is_own else None
        )

    async def endpoint(self, key: Key, endpoint_id: str) -> WebhookEndpoint:
        """Raises NotFound."""
        return await self._store.webhook_endpoints.get(checked_id(endpoint_id, "endpoint"), project=key.project)

    async def update(
        self,
        key: Key,
        endpoint_id: str,
        *,
        url: str | None,
        events: Iterable[RunStatus] | None,
        status: EndpointStatus | None,
    ) -> WebhookEndpoint:
        """Change what is not None. Raises NotFound, InvalidFields, Conflict."""
        if url is not None:
            self.check(url)
        return await self._store.webhook_endpoints.update(
            checked_id(endpoint_id, "endpoint"), project=key.project, url=url, events=events, status=status
        )

    async def remove(self, key: Key, endpoint_id: str) -> None:
        """Raises NotFound."""
        await self._store.webhook_endpoints.remove(checked_id(endpoint_id, "endpoint"), project=key.project)

    async def rotate(self, key: Key, endpoint_id: str, *, overlap_seconds: float) -> tuple[WebhookEndpoint, str]:
        """A new secret; the one before goes on signing for the overlap. Raises NotFound."""
        return await self._store.webhook_endpoints.rotate(
            checked_id(endpoint_id, "endpoint"), project=key.project, overlap_seconds=overlap_seconds
        )

    async def secret(self, key: Key) -> ProjectSecret:
        """What deliveries to the URLs of requests are signed with."""
        return await self._store.project_secrets.newest(key.project)

    async def rotate_secret(self, key: Key, *, overlap_seconds: float) -> ProjectSecret:
        """A new one; the one before goes on signing for the overlap. Raises Conflict."""
        return await self._store.project_secrets.rotate(key.project, overlap_seconds=overlap_seconds)

    async def resend_since(self, key: Key, endpoint_id: str, since: float, *, include_delivered: bool) -> int:
        """How many deliveries are due again. Raises NotFound, Conflict."""
        return await self._store.deliveries.resend_since(
            checked_id(endpoint_id, "endpoint"), since, project=key.project, include_delivered=include_delivered
        )

    async def deliveries(
        self, key: Key, which: DeliveryFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[Delivery], str | None]:
        """A page, newest first, and the cursor of the next. Raises InvalidFields for a garbled cursor."""
        found = await self._store.deliveries.list(
            project=key.project,
            run_id=which.run_id,
            endpoint_id=which.endpoint_id,
            status=which.status,
            before=None if cursor is None else _read_cursor(cursor),
            limit=limit + 1,
        )
        page = found[:limit]
        return page, _cursor_at(page[-1]) if len(found) > limit else None

    async def delivery(self, key: Key, delivery_id: str) -> Delivery:
        """Raises NotFound."""
        return await self._store.deliveries.get(checked_id(delivery_id, "delivery"), project=key.project)

    async def resend(self, key: Key, delivery_id: str) -> Delivery:
        """Make a delivery due now. Raises NotFound, Conflict."""
        return await self._store.deliveries.resend(checked_id(delivery_id, "delivery"), project=key.project)

    def check(self, url: str) -> None:
        """Raises InvalidFields for a URL that the server may not call."""
        try:
            self._check_url(url)
        except InvalidFields as error:
            raise InvalidFields([FieldError("url", wrong.message) for wrong in error.fields]) from error


def _cursor_at(delivery: Delivery) -> str:
    return base64.urlsafe_b64encode(f"{delivery.created_at!r} {delivery.id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
        created_at, delivery_id = text.split(" ")
        place = float(created_at), delivery_id
    except ValueError:
        place = math.nan, ""
    if not (math.isfinite(place[0]) and is_id(place[1])):
        message = "this is not a cursor from an earlier page; ask for the first page without one"
        raise InvalidFields([FieldError("cursor", message)])
    return place
