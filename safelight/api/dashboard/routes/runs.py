"""The list of runs, the page of one, and its pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response

from safelight.api.dashboard.desk import Desk, DeskOf, SessionOf, go, is_script, show
from safelight.api.dashboard.snippets import body_of, curl
from safelight.api.dashboard.thumbnails import MEDIA_TYPE
from safelight.api.params import shorten
from safelight.api.sse import event_stream, read_last_event_id
from safelight.api.views import run_view
from safelight.errors import NotFound
from safelight.runs import ImageRecord, OutputFormat, Run, RunStatus
from safelight.store.search import RunSearch

PAGE_SIZE = 40

SPANS: Mapping[str, tuple[str, float]] = {
    "hour": ("last hour", 3600.0),
    "day": ("last 24 hours", 86400.0),
    "week": ("last 7 days", 7 * 86400.0),
    "month": ("last 30 days", 30 * 86400.0),
}
MEDIA_TYPES = {OutputFormat.PNG: "image/png", OutputFormat.JPEG: "image/jpeg", OutputFormat.WEBP: "image/webp"}
KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/runs", list_runs, methods=["GET"])
    router.add_api_route("/runs/{run_id}", show_run, methods=["GET"])
    router.add_api_route("/runs/{run_id}/events", follow, methods=["GET"])
    router.add_api_route("/runs/{run_id}/preview", preview, methods=["GET"])
    router.add_api_route("/runs/{run_id}/images/{index}", image, methods=["GET"])
    router.add_api_route("/runs/{run_id}/thumbnails/{index}", thumbnail, methods=["GET"])
    router.add_api_route("/runs/{run_id}/cancel", cancel, methods=["POST"])
    router.add_api_route("/runs/{run_id}/replay", replay, methods=["POST"])
    router.add_api_route("/runs/{run_id}/delete", delete, methods=["POST"])


async def list_runs(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """Runs of all projects, newest first, as the filters say."""
    query = request.query_params
    wanted = read_search(query)
    found, cursor = await desk.administration.search(wanted, limit=PAGE_SIZE, cursor=query.get("cursor") or None)
    return show(
        request,
        desk,
        session,
        "runs.html",
        runs=found,
        wanted=wanted,
        within=query.get("within", ""),
        spans=SPANS,
        keys={key.id: key for key in await desk.administration.keys()},
        deployments=await desk.administration.deployments(),
        statuses=list(RunStatus),
        is_first_page="cursor" not in query,
        older=with_cursor(query, cursor) if cursor else None,
        first=with_cursor(query, None),
    )


async def show_run(request: Request, desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """One run with everything that happened to it; for a script, what the playground shows."""
    if is_script(request):
        return JSONResponse(await _as_json(request, desk, await desk.administration.run(run_id)))
    story = await desk.administration.story(run_id)
    run = story.run
    keys = {key.id: key for key in await desk.administration.keys()}
    return show(
        request,
        desk,
        session,
        "run.html",
        run=run,
        place=await desk.service.place(run),
        events=story.events,
        deliveries=story.deliveries,
        made_by=keys.get(run.key_id or ""),
        curl=curl(_predict_address(request, run), body_of(run.params) | {"seed": run.params.seed}),
    )


async def follow(request: Request, desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """The events of a run as they happen."""
    run = await desk.administration.run(run_id)
    after = read_last_event_id(request.headers.get("last-event-id"))
    if not await desk.service.has_news(run, after=after):
        return Response(status_code=204)
    return event_stream(desk.service.follow(run, after=after))


async def preview(desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """What the picture under way looks like so far, small; nothing, and no error in the console, once
    the run has ended."""
    run = await desk.administration.run(run_id)
    try:
        return Response(await desk.service.preview(run), media_type=MEDIA_TYPES[OutputFormat.PNG])
    except NotFound:
        return Response(status_code=204)


async def image(request: Request, desk: DeskOf, session: SessionOf, run_id: str, index: str) -> Response:
    """A picture, whole. With `?download` as a file with a name."""
    found = _image_of(await desk.administration.run(run_id), index)
    headers = dict(KEPT)
    if "download" in request.query_params:
        name = f"{run_id[:8]}-{found.index}-seed-{found.seed}.{found.output_format.value}"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(await desk.service.read_image(found), media_type=MEDIA_TYPES[found.output_format], headers=headers)


async def thumbnail(desk: DeskOf, session: SessionOf, run_id: str, index: str) -> Response:
    """A picture, small."""
    found = _image_of(await desk.administration.run(run_id), index)
    return Response(await desk.thumbnails.get(found), media_type=MEDIA_TYPE, headers=KEPT)


async def cancel(request: Request, desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """Stop a run: at once while it is queued, within one denoising step while it is drawn."""
    run = await desk.administration.cancel(run_id)
    if is_script(request):
        return JSONResponse({"status": run.status})
    return go(f"/dashboard/runs/{run.id}", note="cancelled" if run.status.has_ended else "cancelling")


async def replay(desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """Start the same run again, with the same seeds."""
    run = await desk.administration.replay(session.key, run_id)
    return go(f"/dashboard/runs/{run.id}", note="replayed")


async def delete(desk: DeskOf, session: SessionOf, run_id: str) -> Response:
    """Remove a run and its pictures."""
    await desk.administration.delete(run_id)
    return go("/dashboard/runs", note="deleted")


def read_search(query: QueryParams) -> RunSearch:
    """The filters in the address; what is no filter is none."""
    status = query.get("status", "")
    within = SPANS.get(query.get("within", ""))
    return RunSearch(
        deployment=query.get("deployment") or None,
        status=RunStatus(status) if status in set(RunStatus) else None,
        key_id=query.get("key") or None,
        created_after=time.time() - within[1] if within else None,
        text=query.get("text", "").strip()[:200] or None,
    )


def with_cursor(query: QueryParams, cursor: str | None) -> str:
    """The same filters, from `cursor` on."""
    kept = [(name, value) for name, value in query.multi_items() if value and name not in ("cursor", "note")]
    return "?" + urlencode([*kept, *([("cursor", cursor)] if cursor else [])])


def _predict_address(request: Request, run: Run) -> str:
    return f"{request.url.scheme}://{request.url.netloc}/{run.deployment}/predict"


async def _as_json(request: Request, desk: Desk, run: Run) -> dict[str, object]:
    view = run_view(run, await desk.service.place(run)).model_dump(mode="json")
    address = _predict_address(request, run)
    snippets = {str(each.index): curl(address, body_of(run.params, seed=each.seed)) for each in run.images}
    return view | {"curl": snippets}


def _image_of(run: Run, index: str) -> ImageRecord:
    for each in run.images:
        if str(each.index) == index:
            return each
    raise NotFound(f"this run has no picture {shorten(index)}", code="image_not_found", run_id=run.id)
