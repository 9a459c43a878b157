"""Registered webhook endpoints: made, switched off and on, given a new secret, told again, removed."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import DeskOf, FormOf, SessionOf, go
from safelight.api.dashboard.forms import OVERLAPS
from safelight.api.dashboard.routes.webhooks import show_webhooks
from safelight.errors import Conflict, InvalidFields
from safelight.runs import ENDS, EndpointStatus, RunStatus

HERE = "/dashboard/webhooks"

BACK_TO: Mapping[str, float] = {"1": 3600.0, "24": 86400.0, "168": 7 * 86400.0}
"""How many hours of failed deliveries are sent again, in seconds."""


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/webhooks/endpoints", create, methods=["POST"])
    for action, answer in (("status", switch), ("rotate", rotate), ("resend", resend_failed), ("remove", remove)):
        router.add_api_route(f"/webhooks/endpoints/{{endpoint_id}}/{action}", answer, methods=["POST"])


async def create(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """Register an address. Its secret is on the answer and nowhere else."""
    url = form.word("url")
    try:
        endpoint, secret = await desk.administration.add_endpoint(
            url,
            project=form.word("project") or "default",
            events=[RunStatus(end) for end in form.all("event") if end in ENDS],
        )
    except (InvalidFields, Conflict) as error:
        return await show_webhooks(request, desk, session, error=error, url=url)
    return await show_webhooks(request, desk, session, made=endpoint, endpoint_secret=secret)


async def switch(desk: DeskOf, session: SessionOf, form: FormOf, endpoint_id: str) -> Response:
    """Tell an endpoint of runs, or of none."""
    is_wanted = form.word("status") == EndpointStatus.ENABLED
    status = EndpointStatus.ENABLED if is_wanted else EndpointStatus.DISABLED
    await desk.administration.switch_endpoint(endpoint_id, status)
    return go(HERE, note=status.value)


async def rotate(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, endpoint_id: str) -> Response:
    """A new secret, shown once; the one before goes on signing beside it for a while."""
    overlap = OVERLAPS.get(form.word("overlap"), 0.0)
    endpoint, secret = await desk.administration.rotate_endpoint(endpoint_id, overlap_seconds=overlap)
    return await show_webhooks(request, desk, session, made=endpoint, endpoint_secret=secret)


async def resend_failed(desk: DeskOf, session: SessionOf, form: FormOf, endpoint_id: str) -> Response:
    """Send again what failed lately, the same bytes under the same ids."""
    seconds = BACK_TO.get(form.word("hours"), BACK_TO["24"])
    await desk.administration.resend_failed(endpoint_id, seconds=seconds)
    return go(HERE, note="resent-failed")


async def remove(desk: DeskOf, session: SessionOf, endpoint_id: str) -> Response:
    """Forget an endpoint."""
    await desk.administration.remove_endpoint(endpoint_id)
    return go(HERE, note="removed")
