"""Where results are sent, what came of it, and the secrets that receivers check it with."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import Desk, DeskOf, FormOf, SessionOf, go, show
from safelight.api.dashboard.forms import OVERLAPS
from safelight.api.dashboard.sessions import Session
from safelight.api.errors import status_of
from safelight.errors import Conflict, SafelightError
from safelight.runs import DeliveryStatus, RunStatus, WebhookEndpoint
from safelight.store import ProjectSecret

NUM_DELIVERIES = 50


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/webhooks", webhooks, methods=["GET"])
    router.add_api_route("/webhooks/secret", show_secret, methods=["POST"])
    router.add_api_route("/webhooks/secret/rotate", rotate_secret, methods=["POST"])
    router.add_api_route("/webhooks/{delivery_id}/resend", resend, methods=["POST"])


async def webhooks(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """Registered endpoints, where the last week's results went, and deliveries, newest first."""
    return await show_webhooks(request, desk, session)


async def show_secret(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """The same page with the signing secret of a project on it."""
    secret = await desk.administration.project_secret(form.word("project") or "default")
    return await show_webhooks(request, desk, session, project_secret=secret)


async def rotate_secret(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """A new signing secret of a project; the one before goes on signing beside it for a while."""
    overlap = OVERLAPS.get(form.word("overlap"), 0.0)
    project = form.word("project") or "default"
    try:
        secret = await desk.administration.rotate_project_secret(project, overlap_seconds=overlap)
    except Conflict as error:
        return await show_webhooks(request, desk, session, error=error)
    return await show_webhooks(request, desk, session, project_secret=secret)


async def resend(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, delivery_id: str) -> Response:
    """Deliver again, the same bytes under the same id."""
    delivery = await desk.administration.resend(delivery_id)
    back = f"/dashboard/runs/{delivery.run_id}" if form.word("back") == "run" else "/dashboard/webhooks"
    return go(back, note="resent")


async def show_webhooks(
    request: Request,
    desk: Desk,
    session: Session,
    *,
    error: SafelightError | None = None,
    url: str = "",
    made: WebhookEndpoint | None = None,
    endpoint_secret: str = "",
    project_secret: ProjectSecret | None = None,
) -> Response:
    """The page. `made` is an endpoint whose new secret is shown this once, `url` what was typed and refused."""
    asked = request.query_params.get("status", "")
    status = DeliveryStatus(asked) if asked in set(DeliveryStatus) else None
    keys = await desk.administration.keys()
    return show(
        request,
        desk,
        session,
        "webhooks.html",
        status=status_of(error) if error else 200,
        error=error,
        url=url,
        made=made,
        endpoint_secret=endpoint_secret,
        endpoints=await desk.administration.endpoints(),
        receivers=await desk.administration.receivers(),
        deliveries=await desk.administration.deliveries(status=status, limit=NUM_DELIVERIES),
        chosen=status,
        statuses=list(DeliveryStatus),
        ends=[RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED],
        projects=sorted({key.project for key in keys} | {"default"}),
        project_secret=project_secret,
    )
