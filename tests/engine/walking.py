"""Walk a step table through data whose answer is known, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from safelight.engine.samplers import SIGMA, F, Floats, StepTable, sample, to_remember

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


def walk(table: StepTable, denoise: Denoise, start: torch.Tensor, noises: Iterator[torch.Tensor]) -> torch.Tensor:
    """From `start` [1, C, h, w], of deviation 1, to the end of the table."""
    x = start * table.initial_scale
    remembered: list[torch.Tensor] = []
    for row in table.columns:
        x, remembered = _call(row, x, denoise(x, float(row[SIGMA])), remembered, next(noises))
        remembered = remembered[: table.depth]
    return x


def _call(
    row: Floats, x: torch.Tensor, denoised: torch.Tensor, remembered: list[torch.Tensor], noise: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    columns = torch.from_numpy(row)[None]
    moved = sample(x, denoised, columns, remembered=remembered, noise=noise)
    return moved, [to_remember(x, denoised, columns), *remembered] if row[F] else remembered
