"""Step tables against diffusers' schedulers: the same way through a latent, step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from safelight.engine.samplers import (
    SIGMA,
    TIMESTEP,
    Spacing,
    initial_noise,
    sample,
    scaled_linear_schedule,
    step_table,
)
from safelight.runs import SamplerName

from .drawing import SCHEDULERS

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


def _network(x_in: torch.Tensor, timestep: float) -> torch.Tensor:
    """Stands for a network: smooth, different everywhere, and near the latent as a real prediction of noise is."""
    return 0.9 * x_in + 0.2 * torch.sin(2.0 * x_in + timestep / 300.0)


def _noise(step: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + step), dtype=torch.float64)


def _ours(sampler: SamplerName, num_steps: int, spacing: Spacing | None, prediction: str) -> torch.Tensor:
    table = step_table(sampler, num_steps, replace(SCHEDULE, spacing=spacing))
    x = (initial_noise(3, SHAPE).double() * table.initial_scale)[None]
    previous = torch.zeros_like(x)
    for step, row in enumerate(table.columns):
        sigma, timestep = row[SIGMA], row[TIMESTEP]
        out = _network(x / np.sqrt(sigma**2 + 1), float(np.float32(timestep)))
        denoised = x - sigma * out
        if prediction == "v_prediction":
            denoised = x / (sigma**2 + 1) - out * sigma / np.sqrt(sigma**2 + 1)
        x = sample(x, denoised, torch.from_numpy(row)[None], previous=previous, noise=_noise(step)[None])
        previous = denoised
    return x[0] * table.final_scale


def _theirs(
    sampler: SamplerName, num_steps: int, spacing: Spacing | None, prediction: str, patch: pytest.MonkeyPatch
) -> torch.Tensor:
    asked = {**CONFIG, "prediction_type": prediction} | ({"timestep_spacing": spacing.value} if spacing else {})
    scheduler = SCHEDULERS[sampler].from_config(asked)
    scheduler.set_timesteps(num_steps)
    _widen(scheduler)
    steps = iter(range(num_steps))
    patch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: _noise(next(steps))[None])
    x = initial_noise(3, SHAPE).double()[None] * scheduler.init_noise_sigma
    # Three of the four cast the latent to float32 in every step.
    patch.setattr(torch, "float32", torch.float64)
    for timestep in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(_network(x_in, float(timestep)), timestep, x).prev_sample
    patch.undo()
    return x[0]


def _widen(scheduler: object) -> None:
    """Its tables as they are, carried on in float64."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", [None, *Spacing])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 20, 50])
@pytest.mark.parametrize("sampler", list(SamplerName))
def test_a_table_walks_the_way_of_diffusers_scheduler(
    sampler: SamplerName, num_steps: int, spacing: Spacing | None, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = _theirs(sampler, num_steps, spacing, prediction, monkeypatch)
    ours = _ours(sampler, num_steps, spacing, prediction)
    assert theirs.dtype is torch.float64
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) / scale < 1e-6
