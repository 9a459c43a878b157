"""Step tables against diffusers' schedulers: the same way through a latent, call by call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from safelight.engine.samplers import (
    SIGMA,
    TIMESTEP,
    TIMESTEP_SPACINGS,
    F,
    NoiseSchedule,
    initial_noise,
    sample,
    scaled_linear_schedule,
    step_table,
    to_remember,
)
from safelight.runs import SamplerName, Spacing

from .oracle import feed_noise, lay_grid, make_scheduler, walk_in_float64

SHAPE = (4, 6, 5)
SCHEDULE = scaled_linear_schedule()
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
NUM_STEPS = (1, 2, 4, 20, 50)
WAYS = [(sampler, spacing) for sampler in SamplerName for spacing in sampler.spacings]
PREDICTIONS = ("epsilon", "v_prediction")


def _network(x_in: torch.Tensor, timestep: float) -> torch.Tensor:
    """Stands for a network: smooth, different everywhere, and near the latent as a real prediction of noise is."""
    return 0.9 * x_in + 0.2 * torch.sin(2.0 * x_in + timestep / 300.0)


def _noise(call: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + call), dtype=torch.float64)


def _ours(sampler: SamplerName, num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> torch.Tensor:
    table = step_table(sampler, num_steps, schedule, spacing)
    x = (initial_noise(3, SHAPE).double() * table.initial_scale)[None]
    remembered: list[torch.Tensor] = []
    for call, row in enumerate(table.columns):
        sigma, timestep = row[SIGMA], row[TIMESTEP]
        out = _network(x / np.sqrt(sigma**2 + 1), float(np.float32(timestep)))
        denoised = x - sigma * out
        if schedule.is_v_prediction:
            denoised = x / (sigma**2 + 1) - out * sigma / np.sqrt(sigma**2 + 1)
        columns = torch.from_numpy(row)[None]
        moved = sample(x, denoised, columns, remembered=remembered, noise=_noise(call)[None])
        if row[F]:
            remembered = [to_remember(x, denoised, columns), *remembered][: table.depth]
        x = moved
    return x[0]


def _difference(
    sampler: SamplerName,
    num_steps: int,
    spacing: Spacing,
    prediction: str,
    patch: pytest.MonkeyPatch,
    *,
    wish: Spacing | None = None,
) -> float:
    """Of the last latents, relative to the largest number in them. `wish` is the spacing in the model's own config."""
    config = {**CONFIG, "prediction_type": prediction} | ({"timestep_spacing": wish.value} if wish else {})
    scheduler = make_scheduler(sampler, config, spacing)
    lay_grid(scheduler, sampler, num_steps, spacing)
    feed_noise(patch, (_noise(call)[None] for call in range(num_steps)))
    theirs = walk_in_float64(scheduler, initial_noise(3, SHAPE)[None], _network, patch)[0]
    schedule = replace(SCHEDULE, spacing=wish, is_v_prediction=prediction == "v_prediction")
    ours = _ours(sampler, num_steps, schedule, spacing)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", NUM_STEPS)
@pytest.mark.parametrize(("sampler", "spacing"), WAYS)
def test_a_table_walks_the_way_of_diffusers_scheduler(
    sampler: SamplerName, spacing: Spacing, num_steps: int, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _difference(sampler, num_steps, spacing, prediction, monkeypatch) < 1e-6


@pytest.mark.parametrize("wish", TIMESTEP_SPACINGS)
@pytest.mark.parametrize(("sampler", "spacing"), [way for way in WAYS if way[1] not in TIMESTEP_SPACINGS])
def test_the_wish_of_a_model_is_heard_as_diffusers_hears_it(
    sampler: SamplerName, spacing: Spacing, wish: Spacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _difference(sampler, 7, spacing, "epsilon", monkeypatch, wish=wish) < 1e-6
