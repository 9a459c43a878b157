"""The vocabulary of runs: what a caller asks, what the store keeps, what the engine reports. Frozen, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

MAX_SEED = 2**53 - 1
"""The largest seed a request may name: JSON numbers are exact up to here in every client."""


class RunStatus(StrEnum):
    """`queued -> running -> succeeded | failed | cancelled`. See docs/states.md."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


class OutputFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class SamplerName(StrEnum):
    """Samplers a request can name. The maths is in `engine/samplers.py`."""

    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DDIM = "ddim"
    DPMPP_2M = "dpmpp_2m"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """What a caller asks, with every default filled in. Image i of the run is drawn from `seed + i`."""

    prompt: str
    negative_prompt: str = ""
    height: int = 512
    width: int = 512
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    num_images_per_prompt: int = 1
    seed: int = 0
    sampler: SamplerName = SamplerName.EULER
    output_format: OutputFormat = OutputFormat.PNG

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, in order."""
        return tuple(self.seed + index for index in range(self.num_images_per_prompt))

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance (and with it the negative prompt) is on."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One finished picture of a run, as stored. `path` is relative to the image store."""

    index: int
    seed: int
    output_format: OutputFormat
    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed: a stable code and a sentence with the remedy."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One durable request for 1..n images. Times are seconds since the epoch on the database's clock."""

    id: str
    project: str
    key_id: str | None
    deployment: str
    deployment_version: int
    params: RunParams
    status: RunStatus
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    run_time_ms: float | None = None
    fence: int = 0
    num_attempts: int = 0
    is_cancel_requested: bool = False
    steps_done: int = 0
    steps_total: int = 0
    eta_seconds: float | None = None
    webhook_endpoint: str | None = None
    warnings: tuple[str, ...] = ()
    error: RunError | None = None
    images: tuple[ImageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run about to be stored. `body_digest` tells whether an idempotency key came with the same body."""

    id: str
    project: str
    key_id: str | None
    deployment: str
    deployment_version: int
    params: RunParams
    webhook_endpoint: str | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's time-limited right to `run`. Every write under it checks `fence`."""

    run: Run
    worker_id: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the holder of a claim has come. Steps are summed over the images of the run."""

    run_id: str
    fence: int
    steps_done: int
    steps_total: int
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker learns when it reports progress: runs to stop, and runs it no longer holds."""

    cancel_requested: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a claimed run ended. `status` is one of the three end states."""

    status: RunStatus
    run_time_ms: float
    error: RunError | None = None
    warnings: tuple[str, ...] = ()


class RunEventKind(StrEnum):
    QUEUED = "queued"
    STARTED = "started"
    REQUEUED = "requeued"
    PROGRESS = "progress"
    IMAGE = "image"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """A fact about a run. Stored facts have a `sequence` that grows within the run; `progress` is never stored and has none."""

    run_id: str
    kind: RunEventKind
    at: float
    sequence: int | None = None
    image_index: int | None = None
    steps_done: int | None = None
    steps_total: int | None = None
    eta_seconds: float | None = None
    error: RunError | None = None


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One try: what came back (`status_code`, the first KiB of the body) or why nothing did (`error`)."""

    number: int
    at: float
    duration_ms: float
    status_code: int | None = None
    error: str | None = None
    response_excerpt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The end of a run on its way to one webhook endpoint. `event_id` is the same on every try."""

    id: str
    event_id: str
    run_id: str
    project: str
    url: str
    status: DeliveryStatus
    created_at: float
    next_attempt_at: float | None
    num_attempts: int = 0
    attempts: tuple[DeliveryAttempt, ...] = field(default=())
