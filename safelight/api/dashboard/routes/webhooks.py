"""Where results were sent, what came of it, and the secret that receivers check it with."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import Desk, DeskOf, FormOf, SessionOf, go, show
from safelight.api.dashboard.sessions import Session
from safelight.runs import DeliveryStatus

NUM_DELIVERIES = 50


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/webhooks", webhooks, methods=["GET"])
    router.add_api_route("/webhooks/secret", show_secret, methods=["POST"])
    router.add_api_route("/webhooks/{delivery_id}/resend", resend, methods=["POST"])


async def webhooks(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """Endpoints of the last week, and deliveries, newest first."""
    return await _page(request, desk, session)


async def show_secret(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """The same page with the signing secret of a project on it."""
    project = form.word("project") or "default"
    return await _page(request, desk, session, project=project, secret=desk.administration.webhook_secret(project))


async def resend(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, delivery_id: str) -> Response:
    """Deliver again, the same bytes under the same id."""
    delivery = await desk.administration.resend(delivery_id)
    back = f"/dashboard/runs/{delivery.run_id}" if form.word("back") == "run" else "/dashboard/webhooks"
    return go(back, note="resent")


async def _page(request: Request, desk: Desk, session: Session, *, project: str = "", secret: str = "") -> Response:
    asked = request.query_params.get("status", "")
    status = DeliveryStatus(asked) if asked in set(DeliveryStatus) else None
    keys = await desk.administration.keys()
    return show(
        request,
        desk,
        session,
        "webhooks.html",
        endpoints=await desk.administration.endpoints(),
        deliveries=await desk.administration.deliveries(status=status, limit=NUM_DELIVERIES),
        chosen=status,
        statuses=list(DeliveryStatus),
        projects=sorted({key.project for key in keys}),
        project=project,
        secret=secret,
    )
