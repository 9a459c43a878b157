"""Drawing from the browser: a form, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from safelight.api.dashboard.desk import Desk, DeskOf, FormOf, SessionOf, go, is_script, show
from safelight.api.dashboard.forms import Form
from safelight.api.dashboard.sessions import Session
from safelight.api.dialects import native
from safelight.api.errors import status_of
from safelight.deployments import Deployment, DeploymentStatus
from safelight.errors import NotFound, SafelightError
from safelight.runs import OutputFormat, Run, SamplerName, Spacing
from safelight.store.search import RunSearch

NUM_REMEMBERED = 12
FIELDS = frozenset(
    {"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed", "sampler"}
    | {"num_images_per_prompt", "output_format", "spacing", "webhook_endpoint", "deterministic"}
)


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/playground", playground, methods=["GET"])
    router.add_api_route("/playground", draw, methods=["POST"])


async def playground(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """The form: empty, or with the parameters of a run, and one of its seeds."""
    query = request.query_params
    again = await desk.administration.run(query["run"]) if "run" in query else None
    deployments = await desk.administration.deployments()
    chosen = _chosen(deployments, again.deployment if again else query.get("deployment", ""))
    values = _values_of(again, query.get("image", "")) if again else {}
    return await _page(request, desk, session, deployments=deployments, chosen=chosen, values=values)


async def draw(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """Start a run. A script is told its id, everybody else is sent to its page."""
    asked = _asked(form)
    try:
        deployment = await desk.service.resolve(form.word("deployment"))
        run = await desk.service.submit(session.key, deployment, native.to_params(asked))
    except SafelightError as error:
        if is_script(request):
            raise
        deployments = await desk.administration.deployments()
        chosen = _chosen(deployments, form.word("deployment"))
        return await _page(request, desk, session, deployments=deployments, chosen=chosen, values=asked, error=error)
    if is_script(request):
        return JSONResponse({"run_id": run.id}, status_code=202)
    return go(f"/dashboard/runs/{run.id}")


async def _page(
    request: Request,
    desk: Desk,
    session: Session,
    *,
    deployments: Sequence[Deployment],
    chosen: Deployment | None,
    values: dict[str, object],
    error: SafelightError | None = None,
) -> Response:
    mine, _ = await desk.administration.search(RunSearch(key_id=session.key.id), limit=NUM_REMEMBERED)
    return show(
        request,
        desk,
        session,
        "playground.html",
        status=status_of(error) if error else 200,
        error=error,
        deployments=deployments,
        chosen=chosen,
        values=values,
        history=mine,
        samplers=list(SamplerName),
        spacings=list(Spacing),
        formats=list(OutputFormat),
    )


def _chosen(deployments: Sequence[Deployment], name: str) -> Deployment | None:
    """The deployment with this name, else one that is ready, else any."""
    ready = [each for each in deployments if each.status is DeploymentStatus.ACTIVE]
    named = [each for each in deployments if each.name == name]
    return next(iter([*named, *ready, *deployments]), None)


def _asked(form: Form) -> dict[str, object]:
    """The form as a body of the predict contract."""
    asked = form.filled(FIELDS)
    # A field that was emptied says so: the deployment's default is what was taken out of it.
    if form.all("negative_prompt"):
        asked["negative_prompt"] = form.text("negative_prompt")
    if named := form.all("lora"):
        parts = (each.rpartition("=") for each in named)
        asked["loras"] = [{"name": name, "scale": scale} for name, _, scale in parts]
    return asked


def _values_of(run: Run, image: str) -> dict[str, object]:
    """The parameters of a run; with the number of one of its pictures, that picture alone."""
    values = asdict(run.params)
    if image:
        found = next((each for each in run.images if str(each.index) == image), None)
        if found is None:
            raise NotFound("this run has no such picture", code="image_not_found")
        values |= {"seed": found.seed, "num_images_per_prompt": 1}
    return values
