"""What the engine is asked, and what its loop moves: runs under way, their images, the batches they travel in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.engine.models.base import Reading
from safelight.engine.samplers import SIGMA
from safelight.runs import LoraUse, RunParams

if TYPE_CHECKING:
    import torch

    from safelight.engine.beginnings import Known, Start, StartPicture
    from safelight.engine.checkpoints import Checkpoint
    from safelight.engine.models.base import Conditioning, ImageModel
    from safelight.engine.samplers import StepTable


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load: the name assignments call it by (such as `name@3`) and the folder of its weights.

    `loras` are the files that its runs may name. A pinned one is never moved out for others; one with a cooldown goes
    after so long without a run.
    """

    key: str
    folder: Path
    loras: Mapping[str, Path] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    is_pinned: bool = False
    cooldown_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """The part of a run that is still to draw: `indices` names its images, each drawn from `seed + index`.

    `checkpoint` is how far an earlier claim came, `picture` what the images begin from instead of noise alone. The
    device's time is shared between `key_id`s by their `weight`; before that, a higher `priority` goes first.
    """

    run_id: str
    model_key: str
    params: RunParams
    indices: tuple[int, ...]
    checkpoint: Checkpoint | None = None
    picture: StartPicture | None = None
    key_id: str | None = None
    weight: float = 1.0
    priority: int = 0
    deadline_seconds: float | None = None
    """From now on; after that it is not begun any more."""


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What must be equal for rows to stack. Steps, sampler, guidance, seed and prompts are each row's own."""

    model_key: str
    latent_shape: tuple[int, int, int]
    conditioning_shape: tuple[int, int]
    loras: tuple[LoraUse, ...] = ()
    num_windows: int = 1
    """How many times the conditioning is as long as that of a prompt that takes one window."""
    backend: str = "torch"
    """A claim of a run ends in the networks that it began in, also where others are there by then."""


@dataclass(slots=True, eq=False)
class LiveRun:
    """One assignment under way. Owned by the engine, as everything below."""

    assignment: Assignment
    model: ImageModel
    num_images_left: int
    steps_done: int
    steps_total: int
    deadline_at: float | None = None
    run_time: float = 0.0
    device_time: float = 0.0
    saved_at: float | None = None
    watched_until: float = 0.0
    previewed_at: float = 0.0
    prompt: Conditioning | None = None
    negative: Conditioning | None = None
    start: Start | None = None
    tasks: list[ImageTask] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return self.assignment.run_id

    def is_too_late(self, now: float) -> bool:
        """Whether its deadline passed before anything was drawn. What has begun goes on."""
        return self.deadline_at is not None and now > self.deadline_at and not any(task.cursor for task in self.tasks)

    @property
    def run_time_ms(self) -> float:
        return 1000.0 * self.run_time

    @property
    def device_ms(self) -> float:
        return 1000.0 * self.device_time


@dataclass(slots=True, eq=False, kw_only=True)
class ImageTask:
    """One image of a run: seed, step table, cursor, latent [C, h, w].

    `remembered` is what a sampler that looks back left for its next steps, the latest first, as many as its table
    wants. A suspect task was in a batch that failed and travels alone until it has passed a step.
    """

    run: LiveRun
    index: int
    seed: int
    key: BatchKey
    table: StepTable
    cursor: int = 0
    latent: torch.Tensor | None = None
    remembered: tuple[torch.Tensor, ...] = ()
    known: Known | None = None
    is_suspect: bool = False
    is_guided: bool = field(init=False)
    is_deterministic: bool = field(init=False)
    num_rows: int = field(init=False)

    def __post_init__(self) -> None:
        params = self.run.assignment.params
        # Kept, since the scheduler asks for them hundreds of times a step.
        self.is_guided, self.is_deterministic = params.is_guided, params.deterministic
        self.num_rows = 2 if self.is_guided else 1

    @property
    def has_begun(self) -> bool:
        """Whether it has its latent, and where a part of a picture stays, that part."""
        has_kept_part = self.run.start is not None and self.run.start.mask is not None
        return self.latent is not None and (self.known is not None or not has_kept_part)

    @property
    def next_sigma(self) -> float:
        """The noise it is under after its next step."""
        return float(self.table.columns[self.cursor + 1, SIGMA]) if self.num_steps_left > 1 else 0.0

    @property
    def num_steps_left(self) -> int:
        return len(self.table) - self.cursor


@dataclass(frozen=True)
class Batch:
    """The images of one denoiser call."""

    key: BatchKey
    tasks: tuple[ImageTask, ...]

    @cached_property
    def num_rows(self) -> int:
        return sum(task.num_rows for task in self.tasks)
