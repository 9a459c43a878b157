"""How runs and deployments look as JSON. Pydantic models, so that the OpenAPI document says what is really sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from safelight.api.service import QueuePlace
from safelight.deployments import Defaults, Deployment, DeploymentStatus, Limits
from safelight.runs import ImageRecord, OutputFormat, Run, RunParams, RunStatus, SamplerName, Spacing

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-03-01T12:00:00.000Z"])]


class View(BaseModel):
    """What all views have in common: they are sent whole, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True)


class LoraView(View):
    name: str
    scale: float


class ParamsView(View):
    """What was asked, with every default filled in."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    num_images_per_prompt: int
    seed: int
    sampler: SamplerName
    spacing: Spacing
    output_format: OutputFormat
    deterministic: bool
    strength: float | None = Field(description="How much an init_image was changed; null without one.")
    has_mask: bool = Field(description="Whether only a part of the init_image was changed.")
    loras: tuple[LoraView, ...]


class ProvenanceView(View):
    """What the images were drawn with. Where it differs, pixels of the same parameters may differ too."""

    safelight: str
    torch: str
    device: str
    dtype: str
    num_threads: int
    backend: str = Field(
        description="The backend of the model: torch, cuda graphs, or openvino with its version; empty if not noted."
    )


class ProgressView(View):
    """Steps are summed over the images of the run."""

    steps_done: int
    steps_total: int
    fraction: float = Field(ge=0, le=1)
    eta_seconds: float | None


class RunErrorView(View):
    code: str
    message: str


class ImageView(View):
    """One finished image. `url` is relative to the server."""

    index: int
    seed: int
    format: OutputFormat
    url: str
    bytes: int
    sha256: str


class RunView(View):
    """One run: what was asked, where it stands, what came of it."""

    id: str
    run_id: str
    deployment: str
    version: int
    status: RunStatus
    params: ParamsView
    seeds: list[int]
    created_at: Time
    deadline_at: Time | None = Field(description="When the images are wanted; null where no deadline was named.")
    started_at: Time | None
    ended_at: Time | None
    run_time_ms: float | None
    progress: ProgressView
    queue_position: int | None = Field(description="How many runs are before this one; null when it is not queued.")
    eta_seconds: float | None = Field(description="Seconds until it may have ended; null when not known.")
    error: RunErrorView | None
    warnings: list[str]
    images: list[ImageView]
    images_expired_at: Time | None = Field(
        description="When the images were removed to make room; null: they were not."
    )
    webhook_endpoint: str | None
    provenance: ProvenanceView | None = Field(description="Null until the run has ended.")


class RunPage(View):
    runs: list[RunView]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


class DefaultsView(View):
    """What a request gets where it names nothing."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    num_images_per_prompt: int
    negative_prompt: str
    sampler: SamplerName
    spacing: Spacing
    output_format: OutputFormat


class LimitsView(View):
    """What a request may ask at most. Sides in pixels."""

    side_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    max_guidance_scale: float
    max_prompt_chars: int


class ServingView(View):
    """How the model is kept on a device, and how it reads prompts."""

    pin: bool = Field(description="Whether it stays when other models need room.")
    cooldown_seconds: float = Field(description="How long without a run until it is unloaded; 0: it stays.")
    long_prompts: bool = Field(description="Whether prompts over the text encoder's window are read whole.")
    prompt_weights: bool = Field(description="Whether `(word:1.2)` weighs a word.")
    loras: tuple[str, ...]


class DeploymentView(View):
    name: str
    version: int
    model: str
    revision: str | None
    status: DeploymentStatus
    status_reason: str
    load_seconds: float | None = Field(description="How long it last took to bring the model to the device.")
    max_pixels: int | None = Field(description="Of a picture that fits into the device's memory; null: not known.")
    predict_url: str
    created_at: Time
    defaults: DefaultsView
    limits: LimitsView
    serving: ServingView


class UsageView(View):
    """What came of one key's requests to one deployment."""

    key: str = Field(description="The name of the key; after a rotation, of the newest.")
    key_id: str
    deployment: str
    num_runs: int
    num_images: int = Field(description="Finished images.")
    device_seconds: float = Field(description="Runs that shared a batch share its time.")


class UsageReport(View):
    days: int
    usage: list[UsageView]


class DeploymentList(View):
    deployments: list[DeploymentView]


def run_view(run: Run, place: QueuePlace) -> RunView:
    """The record of `run` as its caller sees it."""
    return RunView(
        id=run.id,
        run_id=run.id,
        deployment=run.deployment,
        version=run.deployment_version,
        status=run.status,
        params=_params_view(run.params),
        seeds=list(run.params.seeds),
        created_at=to_iso(run.created_at),
        deadline_at=iso_or_none(run.deadline_at),
        started_at=iso_or_none(run.started_at),
        ended_at=iso_or_none(run.ended_at),
        run_time_ms=run.run_time_ms,
        progress=_progress_view(run),
        queue_position=place.position,
        eta_seconds=place.eta_seconds,
        error=RunErrorView.model_validate(run.error) if run.error else None,
        warnings=list(run.warnings),
        images=[_image_view(run.id, image) for image in run.images],
        images_expired_at=iso_or_none(run.images_expired_at),
        webhook_endpoint=run.webhook_endpoint,
        provenance=ProvenanceView.model_validate(run.provenance) if run.provenance else None,
    )


def deployment_view(deployment: Deployment) -> DeploymentView:
    """A deployment as callers see it."""
    return DeploymentView(
        name=deployment.name,
        version=deployment.version,
        model=deployment.model,
        revision=deployment.revision,
        status=deployment.status,
        status_reason=deployment.status_reason,
        load_seconds=deployment.load_seconds,
        max_pixels=deployment.max_pixels,
        predict_url=f"/{deployment.name}/predict",
        created_at=to_iso(deployment.created_at),
        defaults=_defaults_view(deployment.defaults),
        limits=_limits_view(deployment.limits),
        serving=ServingView.model_validate(deployment.serving),
    )


def image_url(run_id: str, index: int) -> str:
    """The path of one image."""
    return f"/runs/{run_id}/images/{index}"


def preview_url(run_id: str) -> str:
    """The path of the preview of a run under way."""
    return f"/runs/{run_id}/preview"


def to_iso(seconds: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(seconds: float | None) -> str | None:
    """Like `to_iso`, for what may not have happened."""
    return None if seconds is None else to_iso(seconds)


def _params_view(params: RunParams) -> ParamsView:
    return ParamsView.model_validate(params)


def _defaults_view(defaults: Defaults) -> DefaultsView:
    return DefaultsView.model_validate(defaults)


def _limits_view(limits: Limits) -> LimitsView:
    return LimitsView.model_validate(limits)


def _image_view(run_id: str, image: ImageRecord) -> ImageView:
    return ImageView(
        index=image.index,
        seed=image.seed,
        format=image.output_format,
        url=image_url(run_id, image.index),
        bytes=image.num_bytes,
        sha256=image.sha256,
    )


def _progress_view(run: Run) -> ProgressView:
    fraction = run.steps_done / run.steps_total if run.steps_total else 0.0
    if run.status is RunStatus.SUCCEEDED:
        fraction = 1.0
    return ProgressView(
        steps_done=run.steps_done,
        steps_total=run.steps_total,
        fraction=min(max(fraction, 0.0), 1.0),
        eta_seconds=run.eta_seconds,
    )
