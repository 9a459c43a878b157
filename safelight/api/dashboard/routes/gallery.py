"""Pictures, many at once."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import DeskOf, SessionOf, show
from safelight.api.dashboard.routes.runs import SPANS, read_search, with_cursor
from safelight.runs import RunStatus

NUM_RUNS = 30


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/gallery", gallery, methods=["GET"])


async def gallery(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """The pictures of runs that succeeded, newest first."""
    query = request.query_params
    wanted = replace(read_search(query), status=RunStatus.SUCCEEDED, key_id=None)
    found, cursor = await desk.administration.search(wanted, limit=NUM_RUNS, cursor=query.get("cursor") or None)
    return show(
        request,
        desk,
        session,
        "gallery.html",
        pictures=[(run, image) for run in found for image in run.images],
        wanted=wanted,
        within=query.get("within", ""),
        spans=SPANS,
        deployments=await desk.administration.deployments(),
        is_first_page="cursor" not in query,
        older=with_cursor(query, cursor) if cursor else None,
        first=with_cursor(query, None),
    )
