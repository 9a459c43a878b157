"""The first page: what the server does now, and what it did in the last day."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from safelight.api.dashboard.desk import DeskOf, SessionOf, is_script, show
from safelight.api.dashboard.overview import Overview, make_overview
from safelight.errors import NotFound
from safelight.runs import RunStatus
from safelight.store.search import RunSearch

NUM_PICTURES = 12


def add_routes(router: APIRouter) -> None:
    router.add_api_route("", home, methods=["GET"])


async def home(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """Deployments with their figures, the latest pictures; as JSON what changes from moment to moment."""
    deployments = await desk.administration.deployments()
    overview = make_overview(await desk.administration.activity(), deployments)
    if is_script(request):
        return JSONResponse(_live(overview))
    drawn, _ = await desk.administration.search(RunSearch(status=RunStatus.SUCCEEDED), limit=NUM_PICTURES)
    pictures = [(run, image) for run in drawn for image in run.images][:NUM_PICTURES]
    return show(request, desk, session, "home.html", overview=overview, pictures=pictures)


async def nothing_here(request: Request, rest: str) -> Response:
    """Every path of the dashboard that is none."""
    raise NotFound("there is no such page")


def _live(overview: Overview) -> dict[str, object]:
    return {
        "queued": overview.total.num_queued,
        "running": overview.total.num_running,
        "images_last_hour": overview.total.images_last_hour,
        "images_last_day": overview.total.images_last_day,
        "deployments": {
            each.name: {"status": each.status, "queued": traffic.num_queued, "running": traffic.num_running}
            for each, traffic in overview.deployments
        },
    }
