"""The form every sampler has: a table of coefficients, one row per call of the model, and the update that applies it.

    x' = a * x + b * denoised + c_1 * h_1 + c_2 * h_2 + c_3 * h_3 + d * noise

where h_k is what was remembered k calls ago: remembered = e * x + f * denoised. All scalars are known at admission, so
rows of different samplers and steps share one update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from safelight.engine.samplers.schedules import Floats, Grid

SIGMA, TIMESTEP, A, B, D, E, F, C = range(8)
"""Columns of a step table. C is the first of `MAX_DEPTH`: C + k - 1 weighs what was remembered k calls ago."""

MAX_DEPTH = 3
NUM_COLUMNS = C + MAX_DEPTH


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """All scalars of one image's way: `columns` [num_calls, NUM_COLUMNS]. The first latent is noise * `initial_scale`,
    the last one is decoded. A call whose e and f are both 0 is not remembered."""

    columns: Floats
    initial_scale: float
    depth: int
    """How many remembered calls the sampler looks back."""

    def __len__(self) -> int:
        return len(self.columns)


def _num_remembered(columns: Floats) -> int:
    """How far back these rows look: the largest k with a c_k that is not 0."""
    used = np.flatnonzero(columns[:, C:].any(axis=0))
    return int(used[-1]) + 1 if len(used) else 0


def table_over(grid: Grid, coefficients: Mapping[int, Floats | float]) -> StepTable:
    """The table that asks the model at each point of `grid`; columns that are not named are 0."""
    columns = np.zeros((len(grid.timesteps), NUM_COLUMNS))
    columns[:, SIGMA], columns[:, TIMESTEP] = grid.sigmas[:-1], grid.timesteps
    for place, values in coefficients.items():
        columns[:, place] = values
    # Runs of the same settings share it.
    columns.setflags(write=False)
    return StepTable(columns, grid.initial_scale, _num_remembered(columns))


def sample(
    x: torch.Tensor,
    denoised: torch.Tensor,
    columns: torch.Tensor,
    *,
    remembered: Sequence[torch.Tensor] = (),
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """One update of a whole batch. Latents are [B, C, h, w], `columns` [B, NUM_COLUMNS]; `remembered` begins with the
    latest. A missing operand counts as zero."""
    weights = columns[:, :, None, None, None]
    moved = torch.addcmul(weights[:, A] * x, weights[:, B], denoised)
    for ago, latent in enumerate(remembered):
        moved.addcmul_(weights[:, C + ago], latent)
    if noise is not None:
        moved.addcmul_(weights[:, D], noise)
    return moved


def to_remember(x: torch.Tensor, denoised: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What this call leaves for the next ones, [B, C, h, w], from the latents it was asked about."""
    weights = columns[:, :, None, None, None]
    return torch.addcmul(weights[:, E] * x, weights[:, F], denoised)
