"""/webhooks: registered endpoints, their secrets, the log of deliveries, resending. Looking needs `read`,
changing `admin`."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import JSONResponse, Response

from safelight.api.callers import Administrator, Reader, ServiceOf, SettingsOf
from safelight.api.dialects.native import parse_body
from safelight.api.openapi_webhooks import (
    CREATE_ENDPOINT,
    DELETE_ENDPOINT,
    GET_DELIVERY,
    GET_ENDPOINT,
    GET_PROJECT_SECRET,
    LIST_DELIVERIES,
    LIST_ENDPOINTS,
    RESEND,
    RESEND_SINCE,
    ROTATE_PROJECT_SECRET,
    ROTATE_SECRET,
    UPDATE_ENDPOINT,
)
from safelight.api.receiving import read_json_body
from safelight.api.routes.runs import seconds_of
from safelight.api.webhook_views import (
    ChangedEndpointBody,
    DeliveryPage,
    EndpointList,
    EndpointWithSecret,
    NewEndpointBody,
    ResendBody,
    ResentAnswer,
    RotateBody,
    delivery_view,
    endpoint_view,
    project_secret_view,
    read_as,
)
from safelight.api.webhooks import DeliveryFilter
from safelight.errors import FieldError, InvalidFields
from safelight.keys import Key, Scope
from safelight.runs import DeliveryStatus, WebhookEndpoint

_HOUR_SECONDS = 3600.0


def add_webhook_routes(app: FastAPI) -> None:
    """Everything below /webhooks."""
    routes = (
        # Before /webhooks/{endpoint_id}, which would take "deliveries" and "secret" for ids.
        ("GET", "/webhooks/deliveries", list_deliveries, LIST_DELIVERIES),
        ("GET", "/webhooks/deliveries/{delivery_id}", get_delivery, GET_DELIVERY),
        ("POST", "/webhooks/deliveries/{delivery_id}/resend", resend, RESEND),
        ("GET", "/webhooks/secret", get_project_secret, GET_PROJECT_SECRET),
        ("POST", "/webhooks/secret/rotate", rotate_project_secret, ROTATE_PROJECT_SECRET),
        ("GET", "/webhooks", list_endpoints, LIST_ENDPOINTS),
        ("POST", "/webhooks", create_endpoint, CREATE_ENDPOINT),
        ("GET", "/webhooks/{endpoint_id}", get_endpoint, GET_ENDPOINT),
        ("PATCH", "/webhooks/{endpoint_id}", update_endpoint, UPDATE_ENDPOINT),
        ("DELETE", "/webhooks/{endpoint_id}", delete_endpoint, DELETE_ENDPOINT),
        ("POST", "/webhooks/{endpoint_id}/rotate", rotate_secret, ROTATE_SECRET),
        ("POST", "/webhooks/{endpoint_id}/resend", resend_since, RESEND_SINCE),
    )
    for method, path, answer, described in routes:
        app.add_api_route(path, answer, methods=[method], tags=["webhooks"], **described)


async def list_endpoints(key: Reader, service: ServiceOf) -> Response:
    """The registered endpoints of the key's project, oldest first."""
    found = await service.webhooks.endpoints(key)
    return JSONResponse(EndpointList(endpoints=[endpoint_view(each) for each in found]).model_dump(mode="json"))


async def create_endpoint(request: Request, key: Administrator, service: ServiceOf, settings: SettingsOf) -> Response:
    """Register an endpoint: it is told of every run of the project, or of the key, that ends, signed with a secret of
    its own."""
    body = read_as(NewEndpointBody, parse_body(await read_json_body(request, settings)))
    made = await service.webhooks.create(key, body.url, events=body.events, is_own=body.own_runs_only)
    return _with_secret(*made, status_code=201)


async def get_endpoint(endpoint_id: str, key: Reader, service: ServiceOf) -> Response:
    """One endpoint, and why it is disabled if it is."""
    return _answer(await service.webhooks.endpoint(key, endpoint_id))


async def update_endpoint(
    request: Request, endpoint_id: str, key: Administrator, service: ServiceOf, settings: SettingsOf
) -> Response:
    """Change the URL or the events; disable or enable it. What failed meanwhile is sent by resending."""
    body = read_as(ChangedEndpointBody, parse_body(await read_json_body(request, settings)))
    changed = await service.webhooks.update(key, endpoint_id, url=body.url, events=body.events, status=body.status)
    return _answer(changed)


async def delete_endpoint(endpoint_id: str, key: Administrator, service: ServiceOf) -> Response:
    """Remove an endpoint. What was on its way to it ends as failed and stays in the log."""
    await service.webhooks.remove(key, endpoint_id)
    return Response(status_code=204)


async def rotate_secret(
    request: Request, endpoint_id: str, key: Administrator, service: ServiceOf, settings: SettingsOf
) -> Response:
    """A new secret. Until the overlap ends every delivery carries both signatures, so no receiver misses one."""
    body = read_as(RotateBody, parse_body(await read_json_body(request, settings)))
    overlap_seconds = body.overlap_hours * _HOUR_SECONDS
    return _with_secret(*await service.webhooks.rotate(key, endpoint_id, overlap_seconds=overlap_seconds))


async def get_project_secret(key: Administrator, service: ServiceOf) -> Response:
    """What deliveries to the `webhook_endpoint` of a request are signed with."""
    return JSONResponse(project_secret_view(await service.webhooks.secret(key)).model_dump(mode="json"))


async def rotate_project_secret(
    request: Request, key: Administrator, service: ServiceOf, settings: SettingsOf
) -> Response:
    """A new secret for what requests name. Until the overlap ends every such delivery carries both signatures."""
    body = read_as(RotateBody, parse_body(await read_json_body(request, settings)))
    rotated = await service.webhooks.rotate_secret(key, overlap_seconds=body.overlap_hours * _HOUR_SECONDS)
    return JSONResponse(project_secret_view(rotated).model_dump(mode="json"))


async def resend_since(
    request: Request, endpoint_id: str, key: Administrator, service: ServiceOf, settings: SettingsOf
) -> Response:
    """Send again what failed since a time, or everything. Ids and bytes are the same as the first time."""
    body = read_as(ResendBody, parse_body(await read_json_body(request, settings)))
    since = seconds_of("since", body.since)
    if since is None:
        raise InvalidFields([FieldError("since", "a time is needed")])
    num_due = await service.webhooks.resend_since(key, endpoint_id, since, include_delivered=body.include_delivered)
    return JSONResponse(ResentAnswer(num_due=num_due).model_dump(mode="json"))


async def list_deliveries(
    *,
    key: Reader,
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
    endpoint_id: Annotated[str | None, Query(max_length=64)] = None,
    run_id: Annotated[str | None, Query(max_length=64)] = None,
    status: DeliveryStatus | None = None,
) -> Response:
    """The log of deliveries, newest first, with every attempt."""
    which = DeliveryFilter(endpoint_id=endpoint_id, run_id=run_id, status=status)
    found, next_cursor = await service.webhooks.deliveries(key, which, limit=limit, cursor=cursor)
    views = [delivery_view(each, with_excerpts=_sees_excerpts(key)) for each in found]
    return JSONResponse(DeliveryPage(deliveries=views, next_cursor=next_cursor).model_dump(mode="json"))


async def get_delivery(delivery_id: str, key: Reader, service: ServiceOf) -> Response:
    """One delivery with every attempt and what was answered."""
    found = await service.webhooks.delivery(key, delivery_id)
    return JSONResponse(delivery_view(found, with_excerpts=_sees_excerpts(key)).model_dump(mode="json"))


async def resend(delivery_id: str, key: Administrator, service: ServiceOf) -> Response:
    """Send one delivery again, with the same id and the same bytes."""
    found = await service.webhooks.resend(key, delivery_id)
    return JSONResponse(delivery_view(found, with_excerpts=True).model_dump(mode="json"))


def _answer(endpoint: WebhookEndpoint) -> Response:
    return JSONResponse(endpoint_view(endpoint).model_dump(mode="json"))


def _with_secret(endpoint: WebhookEndpoint, secret: str, *, status_code: int = 200) -> Response:
    view = EndpointWithSecret(endpoint=endpoint_view(endpoint), secret=secret)
    return JSONResponse(view.model_dump(mode="json"), status_code=status_code)


def _sees_excerpts(key: Key) -> bool:
    return key.has_scope(Scope.ADMIN)
