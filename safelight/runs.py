"""The vocabulary of runs: what a caller asks, what the store keeps, what the engine reports. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Samplers a request can name; `sampler_names` knows the others. The maths is in `engine/samplers`."""

    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DDIM = "ddim"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    UNIPC = "unipc"
    HEUN = "heun"
    LMS = "lms"
    LCM = "lcm"
    PNDM = "pndm"

    @property
    def spacings(self) -> tuple[Spacing, ...]:
        """Those it can be asked for with."""
        return _SPACINGS_OF.get(self, tuple(Spacing))

    @property
    def max_steps(self) -> int:
        """The most steps its grids have room for: leading ones leave out the first timestep, and those of multistep
        samplers need one more point than steps."""
        return NUM_DISTILLED_STEPS if self is SamplerName.LCM else _NUM_TRAIN_STEPS - 2


class Spacing(StrEnum):
    """How a sampler's steps are spread over the noise; `sampler_names` knows the others. Automatic is the wish of
    the model, else what the sampler is known for."""

    AUTOMATIC = "automatic"
    LINSPACE = "linspace"
    LEADING = "leading"
    TRAILING = "trailing"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    SGM_UNIFORM = "sgm_uniform"


NUM_DISTILLED_STEPS = 50
"""The grid a latent consistency model was distilled on."""

_NUM_TRAIN_STEPS = 1000

_WHOLE_TIMESTEPS = (Spacing.AUTOMATIC, Spacing.LINSPACE, Spacing.LEADING, Spacing.TRAILING)

_SPACINGS_OF: Mapping[SamplerName, tuple[Spacing, ...]] = {
    SamplerName.DDIM: _WHOLE_TIMESTEPS,
    SamplerName.PNDM: _WHOLE_TIMESTEPS,
    SamplerName.LCM: (Spacing.AUTOMATIC,),
}
"""Samplers that do not take them all: two know the trained timesteps only, one has the grid of its student."""


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA that its deployment knows by `name`, and how strongly it works."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """What a caller asks, with every default filled in. Image i of the run is drawn from `seed + i`.

    A `deterministic` image travels alone through the denoiser, so that its pixels depend on nobody else's. A
    run with a `strength` begins from a picture: that is the share of the steps that change it. With a mask,
    only a part is changed.
    """

    prompt: str
    negative_prompt: str = ""
    height: int = 512
    width: int = 512
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    num_images_per_prompt: int = 1
    seed: int = 0
    sampler: SamplerName = SamplerName.EULER
    spacing: Spacing = Spacing.AUTOMATIC
    output_format: OutputFormat = OutputFormat.PNG
    deterministic: bool = False
    strength: float | None = None
    has_mask: bool = False
    loras: tuple[LoraUse, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, in order."""
        return tuple(self.seed + index for index in range(self.num_images_per_prompt))

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance (and with it the negative prompt) is on."""
        return self.guidance_scale > 1.0

    @property
    def texts(self) -> tuple[str, ...]:
        """What the text encoder reads."""
        return (self.prompt, self.negative_prompt) if self.is_guided else (self.prompt,)

    @property
    def num_skipped_steps(self) -> int:
        """The first steps, which a run that begins from a picture leaves out; one step is always left."""
        if self.strength is None:
            return 0
        return self.num_inference_steps - max(1, int(self.num_inference_steps * self.strength))

    @property
    def pixel_steps(self) -> int:
        """Pixels times steps, over all images: what a rate of work is counted in."""
        num_steps = self.num_inference_steps - self.num_skipped_steps
        return self.height * self.width * num_steps * self.num_images_per_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One finished picture of a run, as stored. `path` is relative to the image store."""

    index: int
    seed: int
    output_format: OutputFormat
    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a run was drawn with: versions, device, dtype, threads, backend. Where two runs of the same parameters
    differ in it, their pixels may."""

    safelight: str
    torch: str
    device: str
    dtype: str
    num_threads: int
    backend: str = ""
    """The backend of the model at the run's size: `torch`, `cuda graphs` (of the shapes that were captured), or
    `openvino` with its version; empty where nobody noted it."""


class InputName(StrEnum):
    """What a run can begin from, by the names of its fields."""

    INIT_IMAGE = "init_image"
    MASK = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """A picture that a run begins from, as stored. `path` is relative to the image store."""

    name: InputName
    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed: a stable code and a sentence with the remedy."""

    code: str
    message: str


DEADLINE_MISSED = RunError(
    "deadline_missed", "the deadline passed before the first step was drawn; send it again with a later deadline_ms"
)


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
    weight: float = 1.0
    priority: int = 0
    deadline_at: float | None = None
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
    images_expired_at: float | None = None
    provenance: Provenance | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run about to be stored. `body_digest` tells whether an idempotency key came with the same body. `deadline_ms`
    is when its pictures are wanted, counted from now."""

    id: str
    project: str
    key_id: str | None
    deployment: str
    deployment_version: int
    params: RunParams
    deadline_ms: int | None = None
    webhook_endpoint: str | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None
    inputs: tuple[RunInput, ...] = ()
    traceparent: str | None = None


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
    """How a claimed run ended. `status` is one of the three end states; `images` and `progress` are
    what was not told yet."""

    status: RunStatus
    run_time_ms: float
    device_ms: float = 0.0
    error: RunError | None = None
    warnings: tuple[str, ...] = ()
    images: tuple[ImageRecord, ...] = ()
    progress: Progress | None = None
    provenance: Provenance | None = None


class RunEventKind(StrEnum):
    QUEUED = "queued"
    STARTED = "started"
    REQUEUED = "requeued"
    PROGRESS = "progress"
    PREVIEW = "preview"
    IMAGE = "image"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """A fact about a run. Stored facts have a `sequence` that grows within the run; `progress` and `preview` are never
    stored and have none."""

    run_id: str
    kind: RunEventKind
    at: float
    sequence: int | None = None
    image_index: int | None = None
    steps_done: int | None = None
    steps_total: int | None = None
    eta_seconds: float | None = None
    error: RunError | None = None


ENDS = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})
"""How a run can end: what a webhook endpoint can ask to be told of."""


class EndpointStatus(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """An address that is told of every run of its project that ends in one of `events`; where `key_id` names the first
    of a line of rotated keys, of the runs of those keys only.

    `status_reason` says why it is disabled. `failing_since` is the first failure after its last success.
    """

    id: str
    project: str
    url: str
    events: frozenset[RunStatus]
    status: EndpointStatus
    status_reason: str
    created_at: float
    failing_since: float | None = None
    key_id: str | None = None
    previous_secret_ends_at: float | None = None


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
    """The end of a run on its way to one webhook endpoint. `event_id` is the same on every try.

    `endpoint_id` is None where the run itself named the URL. `reason` says why a delivery failed that no answer ended.
    `told` is its body without pictures, as it was when the run ended; None for those of before it was kept.
    """

    id: str
    event_id: str
    run_id: str
    project: str
    url: str
    status: DeliveryStatus
    created_at: float
    next_attempt_at: float | None
    num_attempts: int = 0
    endpoint_id: str | None = None
    host: str = ""
    reason: str = ""
    told: str | None = None
    attempts: tuple[DeliveryAttempt, ...] = field(default=())
