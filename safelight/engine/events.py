"""What the engine answers: the events of an assignment. Frozen, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safelight.runs import RunError

if TYPE_CHECKING:
    from safelight.engine.checkpoints import Checkpoint

Pixels = NDArray[np.uint8]
"""A picture: [H, W, 3], RGB."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The prompts of the run are encoded. A warning tells what the text encoder's window cut off; `backend` is what
    will run the networks at the run's size."""

    warnings: tuple[str, ...] = ()
    backend: str = ""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Steps are summed over all images of the run, those finished under an earlier claim included."""

    steps_done: int
    steps_total: int
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointTaken:
    """How far the run has come: what a later claim can go on from."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class PreviewReady:
    """A small picture of what an image will be, as far as it can be told now."""

    index: int
    pixels: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class ImageReady:
    """One picture is finished."""

    index: int
    seed: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class AssignmentDone:
    """Every image was handed over.

    `run_time_ms` sums the engine passes that the run took part in, `device_ms` its share of each by rows.
    """

    run_time_ms: float
    device_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class AssignmentCancelled:
    """The run was cancelled; images that were ready before stay good."""

    run_time_ms: float
    device_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class AssignmentFailed:
    """The run cannot be finished; `error` says why and what to do."""

    error: RunError
    run_time_ms: float
    device_ms: float = 0.0


EndEvent = AssignmentDone | AssignmentCancelled | AssignmentFailed
EngineEvent = EncodedPrompt | StepDone | CheckpointTaken | PreviewReady | ImageReady | EndEvent
"""A run's events end with exactly one EndEvent."""
