"""The page of one deployment: how to call it, what it does when asked for nothing else, its versions."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import Desk, DeskOf, FormOf, SessionOf, go, show
from safelight.api.dashboard.forms import changed
from safelight.api.dashboard.overview import make_overview
from safelight.api.dashboard.sessions import Session
from safelight.api.dashboard.snippets import EXAMPLE_PROMPT, predict_snippets
from safelight.api.errors import status_of
from safelight.deployments import Defaults, Deployment, Limits
from safelight.errors import InvalidFields, InvalidRequest, NotFound, SafelightError
from safelight.runs import OutputFormat, SamplerName, Spacing

NUM_DAYS = 30

_VERSION = re.compile(r"[0-9]{1,9}")


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/deployments/{name}", show_deployment, methods=["GET"])
    router.add_api_route("/deployments/{name}/settings", save, methods=["POST"])
    router.add_api_route("/deployments/{name}/activate", activate, methods=["POST"])
    router.add_api_route("/deployments/{name}/undeploy", undeploy, methods=["POST"])


async def show_deployment(request: Request, desk: DeskOf, session: SessionOf, name: str) -> Response:
    """What is served under a name, or was."""
    return await _page(request, desk, session, name)


async def save(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, name: str) -> Response:
    """Other defaults and limits, as a new version."""
    current = await desk.administration.current(name)
    if current is None:
        raise _not_found()
    try:
        wanted = replace(
            current,
            defaults=changed(current.defaults, form),
            limits=changed(current.limits, form),
            embed_metadata=bool(form.all("embed_metadata")),
        )
        await desk.administration.redeploy(wanted)
    except InvalidFields as error:
        typed = {each: form.text(each) for each in (*Defaults.__dataclass_fields__, *Limits.__dataclass_fields__)}
        return await _page(request, desk, session, name, error=error, typed=typed)
    return go(f"/dashboard/deployments/{name}", note="saved")


async def activate(desk: DeskOf, session: SessionOf, form: FormOf, name: str) -> Response:
    """Serve another version from now on."""
    version = form.word("version")
    if not _VERSION.fullmatch(version):
        raise InvalidRequest("name a version by its number")
    await desk.administration.activate(name, int(version))
    return go(f"/dashboard/deployments/{name}", note="activated")


async def undeploy(desk: DeskOf, session: SessionOf, name: str) -> Response:
    """Serve nothing under a name."""
    await desk.administration.undeploy(name)
    return go(f"/dashboard/deployments/{name}", note="undeployed")


async def _page(
    request: Request,
    desk: Desk,
    session: Session,
    name: str,
    *,
    error: SafelightError | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    versions = await desk.administration.versions(name)
    if not versions:
        raise _not_found()
    current = await desk.administration.current(name)
    shown = current or versions[0]
    address = f"{request.url.scheme}://{request.url.netloc}/{name}/predict"
    overview = make_overview(await desk.administration.activity(), [shown])
    return show(
        request,
        desk,
        session,
        "deployment.html",
        status=status_of(error) if error else 200,
        error=error,
        name=name,
        shown=shown,
        current=current,
        versions=versions,
        traffic=overview.deployments[0][1],
        days=await _days(desk, name),
        weights=await desk.administration.weights(shown.model),
        address=address,
        snippets=predict_snippets(address, {"prompt": EXAMPLE_PROMPT}),
        values=_values(shown) | (typed or {}),
        samplers=list(SamplerName),
        spacings=list(Spacing),
        formats=list(OutputFormat),
    )


async def _days(desk: Desk, name: str) -> list[int]:
    """Runs on each of the last days, the oldest first."""
    counted = await desk.administration.runs_by_day(name, num_days=NUM_DAYS)
    today = int(time.time() // 86400)
    return [counted.get(today - ago, 0) for ago in reversed(range(NUM_DAYS))]


def _values(deployment: Deployment) -> dict[str, object]:
    defaults = {each: getattr(deployment.defaults, each) for each in Defaults.__dataclass_fields__}
    limits = {each: getattr(deployment.limits, each) for each in Limits.__dataclass_fields__}
    return defaults | limits | {"embed_metadata": deployment.embed_metadata}


def _not_found() -> NotFound:
    return NotFound("nothing is deployed under this name", code="deployment_not_found")
