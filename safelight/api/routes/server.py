"""What is not a run: deployments, health, and the page that says where things are."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from safelight.api.callers import Reader, ServiceOf
from safelight.api.metering import Meter
from safelight.api.openapi import HEALTH, INDEX, LIST_DEPLOYMENTS, METRICS, READINESS, USAGE
from safelight.api.views import DeploymentList, UsageReport, UsageView, deployment_view
from safelight.version import __version__


def add_server_routes(app: FastAPI) -> None:
    """The paths beside predict and /runs."""
    app.add_api_route("/", index, methods=["GET"], tags=["server"], **INDEX)
    app.add_api_route("/healthz", healthz, methods=["GET"], tags=["server"], **HEALTH)
    app.add_api_route("/readyz", readyz, methods=["GET"], tags=["server"], **READINESS)
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["server"], **METRICS)
    app.add_api_route("/usage", usage, methods=["GET"], tags=["server"], **USAGE)
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


async def metrics(request: Request, key: Reader, service: ServiceOf) -> Response:
    """The figures of this server for Prometheus; docs/metrics.md has all of them."""
    meter: Meter = request.app.state.meter
    body, media_type = await meter.expose(service.measure, accept=request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


async def usage(key: Reader, service: ServiceOf, days: Annotated[int, Query(ge=1, le=3660)] = 30) -> Response:
    """What the keys of the key's project have used in the last days, by key and deployment."""
    views = [UsageView.model_validate(each) for each in await service.usage(key, num_days=days)]
    return JSONResponse(UsageReport(days=days, usage=views).model_dump(mode="json"))
