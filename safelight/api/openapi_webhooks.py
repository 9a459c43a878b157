"""What /openapi.json says of the routes below /webhooks."""

from __future__ import annotations

from typing import Any

from safelight.api.answers import JSON
from safelight.api.openapi import json_answer, route
from safelight.api.webhook_views import (
    DeliveryPage,
    DeliveryView,
    EndpointList,
    EndpointView,
    EndpointWithSecret,
    ProjectSecretView,
    ResentAnswer,
)

_EXAMPLE_URL = "https://example.com/safelight"


def _taking(body: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"#/components/schemas/{body}"}, "example": example}
    return {"requestBody": {"required": True, "content": {JSON: schema}}}


_READ = (401, 403, 404, 503)
_CHANGE = (400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507)

LIST_ENDPOINTS = route({200: json_answer(EndpointList, "The endpoints of the project.")}, 401, 403, 503)
CREATE_ENDPOINT = route(
    {201: json_answer(EndpointWithSecret, "The endpoint, and its secret this once.")},
    *(status for status in _CHANGE if status != 404),
    **_taking("NewEndpointBody", {"url": _EXAMPLE_URL, "events": ["succeeded", "failed"]}),
)
CREATE_ENDPOINT["status_code"] = 201
GET_ENDPOINT = route({200: json_answer(EndpointView, "The endpoint.")}, *_READ)
UPDATE_ENDPOINT = route(
    {200: json_answer(EndpointView, "The endpoint as it is now.")},
    *_CHANGE,
    **_taking("ChangedEndpointBody", {"status": "enabled"}),
)
DELETE_ENDPOINT = route({204: {"description": "It is gone."}}, 401, 403, 404, 503, 507)
DELETE_ENDPOINT["status_code"] = 204
ROTATE_SECRET = route(
    {200: json_answer(EndpointWithSecret, "The endpoint, and its new secret this once.")},
    *_CHANGE,
    **_taking("RotateBody", {"overlap_hours": 24}),
)
GET_PROJECT_SECRET = route({200: json_answer(ProjectSecretView, "The secret of the project.")}, 401, 403, 503)
ROTATE_PROJECT_SECRET = route(
    {200: json_answer(ProjectSecretView, "The new secret of the project.")},
    *(status for status in _CHANGE if status != 404),
    **_taking("RotateBody", {"overlap_hours": 24}),
)
RESEND_SINCE = route(
    {200: json_answer(ResentAnswer, "What is on its way again.")},
    *_CHANGE,
    **_taking("ResendBody", {"since": "2026-03-01T12:00:00Z"}),
)
LIST_DELIVERIES = route({200: json_answer(DeliveryPage, "A page of deliveries.")}, 401, 403, 422, 503)
GET_DELIVERY = route({200: json_answer(DeliveryView, "The delivery with its attempts.")}, *_READ)
RESEND = route({200: json_answer(DeliveryView, "The delivery, due now.")}, 401, 403, 404, 409, 503, 507)
