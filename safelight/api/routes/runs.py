"""/runs: records, images, events, cancelling and deleting."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request
from starlette.responses import JSONResponse, Response

from safelight.api.callers import Predictor, RunReader, ServiceOf
from safelight.api.middleware import trace_of
from safelight.api.openapi import (
    CANCEL_RUN,
    DELETE_RUN,
    FOLLOW_RUN,
    GET_IMAGE,
    GET_PREVIEW,
    GET_RUN,
    LIST_RUNS,
)
from safelight.api.params import shorten
from safelight.api.service import RunFilter, Service
from safelight.api.sse import event_stream, read_last_event_id
from safelight.api.views import RunPage, run_view
from safelight.errors import FieldError, InvalidFields, NotFound
from safelight.keys import Key
from safelight.runs import ImageRecord, OutputFormat, Run, RunStatus

_MEDIA_TYPES = {OutputFormat.PNG: "image/png", OutputFormat.JPEG: "image/jpeg", OutputFormat.WEBP: "image/webp"}
_INDEX = re.compile(r"[0-9]{1,4}")

Moment = Annotated[str | None, Query(description="ISO 8601; UTC unless it says otherwise.")]


def add_runs_routes(app: FastAPI) -> None:
    """Everything below /runs."""
    app.add_api_route("/runs", list_runs, methods=["GET"], tags=["runs"], **LIST_RUNS)
    app.add_api_route("/runs/{run_id}", get_run, methods=["GET"], tags=["runs"], **GET_RUN)
    app.add_api_route("/runs/{run_id}", delete_run, methods=["DELETE"], tags=["runs"], **DELETE_RUN)
    app.add_api_route("/runs/{run_id}/cancel", cancel_run, methods=["POST"], tags=["runs"], **CANCEL_RUN)
    app.add_api_route("/runs/{run_id}/events", follow_run, methods=["GET"], tags=["runs"], **FOLLOW_RUN)
    app.add_api_route("/runs/{run_id}/images/{index}", get_image, methods=["GET"], tags=["runs"], **GET_IMAGE)
    app.add_api_route("/runs/{run_id}/preview", get_preview, methods=["GET"], tags=["runs"], **GET_PREVIEW)


async def list_runs(
    *,
    key: RunReader,
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
    status: RunStatus | None = None,
    deployment: Annotated[str | None, Query(max_length=63)] = None,
    created_after: Moment = None,
    created_before: Moment = None,
) -> Response:
    """The runs of the key's project, newest first."""
    which = RunFilter(
        status=status,
        deployment=deployment,
        created_after=seconds_of("created_after", created_after),
        created_before=seconds_of("created_before", created_before),
    )
    runs, next_cursor = await service.list(key, which, limit=limit, cursor=cursor)
    views = [run_view(run, place) for run, place in zip(runs, await service.places(runs), strict=True)]
    return JSONResponse(RunPage(runs=views, next_cursor=next_cursor).model_dump(mode="json"))


async def get_run(request: Request, run_id: str, key: RunReader, service: ServiceOf) -> Response:
    """One run: parameters, seeds, times, progress, place in the queue, error, links to its images."""
    return await _answer_run(service, await _find(request, service, key, run_id))


async def cancel_run(request: Request, run_id: str, key: Predictor, service: ServiceOf) -> Response:
    """Stop a run: at once while it is queued, within one denoising step while it is running."""
    run = await service.cancel(key, run_id)
    trace_of(request.scope).run_id = run.id
    return await _answer_run(service, run)


async def delete_run(request: Request, run_id: str, key: Predictor, service: ServiceOf) -> Response:
    """Remove a run with its images. One that is running must be cancelled first."""
    await service.delete(key, run_id)
    trace_of(request.scope).run_id = run_id
    return Response(status_code=204)


async def get_image(request: Request, run_id: str, index: str, key: RunReader, service: ServiceOf) -> Response:
    """The bytes of one image."""
    run = await _find(request, service, key, run_id)
    image = _image_of(run, index)
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if headers["ETag"] in _tags(request):
        return Response(status_code=304, headers=headers)
    return Response(await service.read_image(image), media_type=_MEDIA_TYPES[image.output_format], headers=headers)


async def get_preview(request: Request, run_id: str, key: RunReader, service: ServiceOf) -> Response:
    """A small picture of what a run that is being drawn will be."""
    run = await _find(request, service, key, run_id)
    headers = {"Cache-Control": "no-store"}
    return Response(await service.preview(run), media_type=_MEDIA_TYPES[OutputFormat.PNG], headers=headers)


async def follow_run(
    request: Request,
    run_id: str,
    key: RunReader,
    service: ServiceOf,
    *,
    last_event_id: Annotated[str | None, Header(description="The id of the last event seen.")] = None,
) -> Response:
    """The events of a run as they happen, as server-sent events, to its end."""
    run = await _find(request, service, key, run_id)
    after = read_last_event_id(last_event_id)
    if not await service.has_news(run, after=after):
        # The one status on which a browser's EventSource does not come back.
        return Response(status_code=204)
    return event_stream(service.follow(run, after=after))


async def _find(request: Request, service: Service, key: Key, run_id: str) -> Run:
    run = await service.get(key, run_id)
    trace_of(request.scope).run_id = run.id
    return run


async def _answer_run(service: Service, run: Run) -> Response:
    return JSONResponse(run_view(run, await service.place(run)).model_dump(mode="json"))


def _image_of(run: Run, index: str) -> ImageRecord:
    for image in run.images:
        if _INDEX.fullmatch(index) and image.index == int(index):
            return image
    raise NotFound(f"this run has no image {shorten(index)}", code="image_not_found", run_id=run.id)


def _tags(request: Request) -> list[str]:
    return [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]


def seconds_of(name: str, text: str | None) -> float | None:
    """A moment of a request as seconds since the epoch. Raises InvalidFields."""
    if text is None:
        return None
    try:
        # The + of an offset is a space to whoever decodes a query that was not encoded.
        moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
    except ValueError as error:
        rule = "is not ISO 8601, such as 2026-03-01T12:00:00Z"
        raise InvalidFields([FieldError(name, f"{shorten(text)} {rule}")]) from error
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
