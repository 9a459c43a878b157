"""Samplers that look at no earlier step: Euler, its ancestral form, DDIM, Heun, LCM. Sources are named at each."""

from __future__ import annotations

import numpy as np

from safelight.engine.samplers.schedules import (
    Grid,
    NoiseSchedule,
    distilled_timesteps,
    sigma_grid,
    whole_timesteps,
)
from safelight.engine.samplers.tables import A, B, C, D, F, StepTable, table_over
from safelight.runs import NUM_DISTILLED_STEPS, Spacing

_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0
"""The boundary condition of latent consistency models (Luo et al. 2023, arXiv 2310.04378, appendix C)."""


def euler(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Euler's method on the probability flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn)."""
    grid = sigma_grid(num_steps, schedule, spacing).after(first)
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    return table_over(grid, {A: ratio, B: 1.0 - ratio})


def euler_ancestral(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Euler to `sigma_down`, then fresh noise of `sigma_up` (k-diffusion, `sample_euler_ancestral`, eta 1)."""
    grid = sigma_grid(num_steps, schedule, spacing).after(first)
    sigma, sigma_to = grid.sigmas[:-1], grid.sigmas[1:]
    sigma_up = np.sqrt(sigma_to**2 * (sigma**2 - sigma_to**2) / sigma**2)
    sigma_down = np.sqrt(sigma_to**2 - sigma_up**2)
    ratio = sigma_down / sigma
    return table_over(grid, {A: ratio, B: 1.0 - ratio, D: sigma_up})


def heun(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Heun's method (Karras et al. 2022, algorithm 1): each step but the last asks the model again where it arrived.

    Both slopes of a step pass through the point reached, so there the mean of the slopes is a matter of the two
    predictions: x' = x + (sigma_to - sigma) / (2 * sigma_to) * (previous denoised - denoised).
    """
    grid = sigma_grid(num_steps, schedule, spacing).after(first)
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    inner = grid.sigmas[1:-1]
    half = (grid.sigmas[:-2] - inner) / (2.0 * inner)
    twice = np.repeat(np.arange(len(grid.timesteps)), 2)[1:]
    calls = Grid(grid.timesteps[twice], np.append(grid.sigmas[twice], 0.0), grid.initial_scale)
    is_second = np.arange(len(twice)) % 2 == 1
    a, b, c = np.ones(len(twice)), np.zeros(len(twice)), np.zeros(len(twice))
    a[~is_second], b[~is_second] = ratio, 1.0 - ratio
    b[is_second], c[is_second] = half, -half
    return table_over(calls, {A: a, B: b, C: c, F: np.where(is_second, 0.0, 1.0)})


def ddim(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """DDIM with eta 0 (Song et al. 2021, arXiv 2010.02502, equation 12): in these coordinates Euler's step over DDIM's
    own grid."""
    timesteps = whole_timesteps(num_steps, schedule, spacing)[first:]
    sigma = schedule.sigmas[timesteps.astype(int)]
    earlier = timesteps.astype(int) - schedule.num_train_steps // num_steps
    sigma_end = 0.0 if schedule.is_final_alpha_one else schedule.sigmas[0]
    sigma_to = np.where(earlier >= 0, schedule.sigmas[np.maximum(earlier, 0)], sigma_end)
    # The variance-preserving latent stays where the next step starts from another sigma than this one aimed at, and is
    # what is decoded; ours is rescaled.
    reached, taken_up = np.sqrt(sigma_to**2 + 1.0), np.append(np.sqrt(sigma[1:] ** 2 + 1.0), 1.0)
    ratio, rescale = sigma_to / sigma, taken_up / reached
    grid = Grid(timesteps, np.append(sigma, 0.0), float(np.sqrt(sigma[0] ** 2 + 1.0)))
    return table_over(grid, {A: ratio * rescale, B: (1.0 - ratio) * rescale})


def lcm(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3) for students distilled to it: to the data in one
    stride, then fresh noise of the next sigma. Its grid is the student's, whatever the spacing."""
    timesteps = distilled_timesteps(num_steps, schedule, num_distilled=NUM_DISTILLED_STEPS)[first:]
    sigmas = np.append(schedule.sigmas[timesteps.astype(int)], 0.0)
    scaled = timesteps * _TIMESTEP_SCALING
    c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    c_out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
    preserved = np.sqrt(sigmas[:-1] ** 2 + 1.0)
    grid = Grid(timesteps, sigmas, float(preserved[0]))
    return table_over(grid, {A: c_skip / preserved, B: c_out, D: sigmas[1:]})
