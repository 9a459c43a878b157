"""What is not a run: deployments, health, and the page that says where things are."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from safelight.version import __version__
from safelight.api.callers import Reader, ServiceOf
from safelight.api.openapi import HEALTH, INDEX, LIST_DEPLOYMENTS, READINESS
from safelight.api.views import DeploymentList, deployment_view


def add_server_routes(app: FastAPI) -> None:
    """The paths beside predict and /runs."""
    app.add_api_route("/", index, methods=["GET"], tags=["server"], **INDEX)
    app.add_api_route("/healthz", healthz, methods=["GET"], tags=["server"], **HEALTH)
    app.add_api_route("/readyz", readyz, methods=["GET"], tags=["server"], **READINESS)
    app.add_api_route("/deployments", list_deployments, methods=["GET"], tags=["server"], **LIST_DEPLOYMENTS)


async def index(request: Request) -> Response:
    """What this server is, and where its description is."""
    if request.app.state.desk is not None and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/dashboard", status_code=303)
    members = {"name": "safelight", "version": __version__, "openapi": "/openapi.json", "health": "/healthz"}
    return JSONResponse(members | {"predict": "/{deployment}/predict", "runs": "/runs", "deployments": "/deployments"})


async def healthz() -> Response:
    """Alive: this process answers."""
    return JSONResponse({"status": "ok"})


async def readyz(service: ServiceOf) -> Response:
    """Ready: the store answers and there is somebody to do the work."""
    await service.check_ready()
    return JSONResponse({"status": "ready"})


async def list_deployments(key: Reader, service: ServiceOf) -> Response:
    """The deployments of this server, with their defaults and limits."""
    deployments = await service.list_deployments()
    views = [deployment_view(deployment) for deployment in deployments]
    return JSONResponse(DeploymentList(deployments=views).model_dump(mode="json"))
