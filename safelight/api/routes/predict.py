"""POST .../predict: the predict contract under all its addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import FastAPI, Request
from starlette.responses import Response

from safelight.api.answers import Answer, respond
from safelight.api.callers import Predictor, ServiceOf, SettingsOf
from safelight.api.dialects import native
from safelight.api.middleware import trace_of
from safelight.api.openapi import predict_route
from safelight.api.receiving import read_json_body
from safelight.api.service import Service
from safelight.errors import FieldError, InvalidFields, SafelightError
from safelight.runs import Run

PREDICT_PATHS = (
    "/{deployment}/predict",
    "/{project}/{deployment}/predict",
    "/v1/{project}/{deployment}/predict",
    "/v2/{project}/{deployment}/predict",
    "/v3/{project}/{deployment}/predict",
)
"""`project` is what some clients of the predict contract send; the run belongs to the project of the key."""


def add_predict_routes(app: FastAPI) -> None:
    """The same endpoint at every path of PREDICT_PATHS."""
    for path in PREDICT_PATHS:
        app.add_api_route(
            path, predict, methods=["POST"], tags=["predict"], **predict_route(takes_project="{project}" in path)
        )


async def predict(
    request: Request, deployment: str, key: Predictor, service: ServiceOf, settings: SettingsOf
) -> Response:
    """Generate images from a prompt.

    Without `webhook_endpoint` the answer waits for the images. With it, or with `Prefer:
    respond-async`, it comes at once.
    """
    served = await service.resolve(deployment)
    received = await read_json_body(request, settings, large_keys=native.PICTURE_KEYS)
    native.check_size(received, max_bytes=settings.max_body_bytes)
    body = native.parse_body(received)
    idempotency_key = _idempotency_key(request)
    run = await service.submit(
        key,
        served,
        native.to_params(body),
        idempotency_key=idempotency_key,
        digest=native.digest(served.name, body) if idempotency_key else None,
    )
    trace_of(request.scope).run_id = run.id
    if run.webhook_endpoint is not None:
        return respond(native.from_accepted(run))
    if _prefers_async(request):
        return respond(native.from_deferred(run))
    answer = await _unless_gone(request, _answer_when_done(service, run))
    return respond(answer) if answer is not None else Response(status_code=499)


async def _answer_when_done(service: Service, run: Run) -> Answer:
    try:
        done = await service.wait(run)
        return native.from_run(done, await service.read_images(done))
    except SafelightError as error:
        error.run_id = run.id
        raise


async def _unless_gone(request: Request, answering: Awaitable[Answer]) -> Answer | None:
    """The answer, or None as soon as the client has hung up: the run goes on, only the waiting ends."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await answer if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isprintable():
        rule = "is not 1 to 255 printable characters; a UUID is a good one"
        raise InvalidFields([FieldError("Idempotency-Key", rule)])
    return key


def _prefers_async(request: Request) -> bool:
    wishes = ",".join(request.headers.getlist("prefer")).split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)
