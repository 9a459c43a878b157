"""What can be deployed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import Desk, DeskOf, FormOf, SessionOf, go, show
from safelight.api.dashboard.sessions import Session
from safelight.api.errors import status_of
from safelight.errors import InvalidFields, SafelightError


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/models", models, methods=["GET"])
    router.add_api_route("/models", deploy, methods=["POST"])


async def models(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """The catalogue, what is deployed of it, and a form for a model of one's own."""
    return await _page(request, desk, session)


async def deploy(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """Serve a model under a name."""
    model, name = form.word("model"), form.word("name")
    try:
        deployed = await desk.administration.deploy(model, name=name)
    except InvalidFields as error:
        return await _page(request, desk, session, error=error, model=model, name=name)
    return go(f"/dashboard/deployments/{deployed.name}", note="deployed")


async def _page(
    request: Request,
    desk: Desk,
    session: Session,
    *,
    error: SafelightError | None = None,
    model: str = "",
    name: str = "",
) -> Response:
    deployments = await desk.administration.deployments()
    return show(
        request,
        desk,
        session,
        "models.html",
        status=status_of(error) if error else 200,
        error=error,
        offers=await desk.administration.offers(),
        deployments=deployments,
        model=model,
        name=name,
    )
