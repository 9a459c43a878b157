"""What the engine is asked and what it answers: assignments in, events out. Frozen, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safelight.runs import RunError, RunParams

Pixels = NDArray[np.uint8]
"""A picture: [H, W, 3], RGB."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load: the name assignments call it by (such as `name@3`) and the folder of its weights."""

    key: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """The part of a run that is still to draw: `indices` names its images, each drawn from `seed + index`."""

    run_id: str
    model_key: str
    params: RunParams
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The prompts of the run are encoded. A warning tells what the text encoder's window cut off."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepDone:
    """Steps are summed over all images of the run, those finished under an earlier claim included."""

    steps_done: int
    steps_total: int
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageReady:
    """One picture is finished."""

    index: int
    seed: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class AssignmentDone:
    """Every image was handed over. `run_time_ms` sums the engine passes that the run took part in."""

    run_time_ms: float


@dataclass(frozen=True, slots=True)
class AssignmentCancelled:
    """The run was cancelled; images that were ready before stay good."""

    run_time_ms: float


@dataclass(frozen=True, slots=True)
class AssignmentFailed:
    """The run cannot be finished; `error` says why and what to do."""

    error: RunError
    run_time_ms: float


EndEvent = AssignmentDone | AssignmentCancelled | AssignmentFailed
EngineEvent = EncodedPrompt | StepDone | ImageReady | EndEvent
"""A run's events end with exactly one EndEvent."""
