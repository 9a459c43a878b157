"""The noise a model was trained on, and the grids of timesteps and sigmas that samplers lay over it. Pure maths.

Sigma is the deviation of the noise in the coordinates x = x0 + sigma * n (Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from safelight.runs import Spacing

Floats = NDArray[np.float64]

TIMESTEP_SPACINGS = (Spacing.LINSPACE, Spacing.LEADING, Spacing.TRAILING)
"""How timesteps are spread over the training schedule (Lin et al. 2024, arXiv 2305.08891, table 2)."""

_RHO = 7.0
"""Karras et al. 2022, section 3."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """The noise a model was trained on. `spacing` is the model's own wish, one of `TIMESTEP_SPACINGS`; without one each
    sampler has its default. A sampler that mixes what the network said needs to know whether that was v."""

    alphas_cumprod: Floats
    steps_offset: int = 1
    is_final_alpha_one: bool = False
    spacing: Spacing | None = None
    is_v_prediction: bool = False

    @property
    def num_train_steps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Floats:
        """[num_train_steps], growing with the timestep."""
        return np.sqrt((1.0 - self.alphas_cumprod) / self.alphas_cumprod)

    def sigma_at(self, timesteps: Floats) -> Floats:
        """Sigma at fractional timesteps, linear in between."""
        return np.interp(timesteps, np.arange(self.num_train_steps), self.sigmas)

    def timestep_at(self, sigmas: Floats) -> Floats:
        """The fractional timesteps of these sigmas, linear in log sigma; beyond the ends, the ends."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(self.num_train_steps))


def alphas_from_betas(betas: torch.Tensor) -> Floats:
    """The cumulative product in float32, as models were trained with it, then widened."""
    product: Floats = torch.cumprod(1.0 - betas, dim=0).double().numpy()
    return product


def scaled_linear_schedule(
    *,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    num_train_steps: int = 1000,
    spacing: Spacing | None = None,
    is_final_alpha_one: bool = False,
    is_v_prediction: bool = False,
) -> NoiseSchedule:
    """The schedule of Stable Diffusion 1.x and 2.x."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=torch.float32)
    alphas = alphas_from_betas(roots**2)
    return NoiseSchedule(
        alphas, spacing=spacing, is_final_alpha_one=is_final_alpha_one, is_v_prediction=is_v_prediction
    )


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the network is asked: `timesteps` [n], `sigmas` [n + 1] down to 0, and the deviation of the
    first latent."""

    timesteps: Floats
    sigmas: Floats
    initial_scale: float

    def after(self, first: int) -> Grid:
        """Without its first points."""
        return Grid(self.timesteps[first:], self.sigmas[first:], self.initial_scale)


def sigma_grid(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Grid:
    """The grid of samplers that step through sigma: timesteps may be fractions. Karras and exponential run between the
    ends of the model's own spacing."""
    own = schedule.spacing or Spacing.LINSPACE
    base = spacing if spacing in TIMESTEP_SPACINGS else own
    timesteps = _fractional_timesteps(num_steps, schedule, base)
    sigmas = schedule.sigma_at(timesteps)
    if spacing in (Spacing.KARRAS, Spacing.EXPONENTIAL):
        sigmas = _between(float(sigmas[0]), float(sigmas[-1]), num_steps, spacing)
        timesteps = schedule.timestep_at(sigmas)
    elif spacing is Spacing.SGM_UNIFORM:
        timesteps, sigmas = _sgm_uniform(num_steps, schedule)
        base = Spacing.TRAILING
    largest = float(sigmas[0])
    scale = (largest**2 + 1.0) ** 0.5 if base is Spacing.LEADING else largest
    return Grid(timesteps, np.append(sigmas, 0.0), scale)


def lambda_grid(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Grid:
    """The grid of samplers that step through lambda = -log sigma: they count the end as a point of their own, know
    whole timesteps only, and let karras and exponential run over the whole training schedule."""
    if spacing in (Spacing.KARRAS, Spacing.EXPONENTIAL):
        sigmas = _between(float(schedule.sigmas[-1]), float(schedule.sigmas[0]), num_steps, spacing)
        seen = schedule.timestep_at(sigmas)
        timesteps = seen.round() if spacing is Spacing.KARRAS else _cut_off(seen)
    elif spacing is Spacing.SGM_UNIFORM:
        timesteps, sigmas = _sgm_uniform(num_steps, schedule)
    else:
        timesteps = _multistep_timesteps(num_steps, schedule, spacing)
        sigmas = schedule.sigma_at(timesteps)
    return Grid(timesteps, np.append(sigmas, 0.0), float(np.sqrt(sigmas[0] ** 2 + 1.0)))


def whole_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Floats:
    """The grid of samplers that step from one trained timestep to another, falling."""
    total = schedule.num_train_steps
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, total - 1, num_steps).round()[::-1]
    if spacing is Spacing.LEADING:
        steps = np.arange(num_steps)[::-1] * (total // num_steps) + schedule.steps_offset
        return steps.astype(np.float64)
    # Rounding makes numpy count one too many for some numbers of steps, 61 the first.
    return np.arange(total, 0, -total / num_steps)[:num_steps].round() - 1.0


def distilled_timesteps(num_steps: int, schedule: NoiseSchedule, *, num_distilled: int) -> Floats:
    """Evenly among the `num_distilled` timesteps a student was trained on (Luo et al. 2023, arXiv 2310.04378)."""
    stride = schedule.num_train_steps // num_distilled
    picked = np.floor(np.linspace(0, num_distilled, num_steps, endpoint=False))
    timesteps: Floats = (num_distilled - picked) * stride - 1.0
    return timesteps


def _fractional_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Floats:
    if spacing is not Spacing.LINSPACE:
        return whole_timesteps(num_steps, schedule, spacing)
    # The model sees float32 timesteps, and sigma belongs to what it sees.
    return np.linspace(0, schedule.num_train_steps - 1, num_steps, dtype=np.float32)[::-1].astype(np.float64)


def _multistep_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Floats:
    total = schedule.num_train_steps
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, total - 1, num_steps + 1).round()[::-1][:-1]
    if spacing is Spacing.LEADING:
        steps = np.arange(num_steps + 1)[::-1][:-1] * (total // (num_steps + 1)) + schedule.steps_offset
        return steps.astype(np.float64)
    return whole_timesteps(num_steps, schedule, spacing)


def _between(largest: float, smallest: float, num_steps: int, spacing: Spacing) -> Floats:
    """Karras et al. 2022, equation 5; or evenly in log sigma."""
    if spacing is Spacing.EXPONENTIAL:
        return np.exp(np.linspace(math.log(largest), math.log(smallest), num_steps))
    ramp = np.linspace(largest ** (1.0 / _RHO), smallest ** (1.0 / _RHO), num_steps)
    sigmas: Floats = ramp**_RHO
    return sigmas


def _cut_off(timesteps: Floats) -> Floats:
    """Whole timesteps as diffusers makes them of exponential sigmas. Its float32 leaves the first just short of the
    last trained timestep, so the network is shown the one before, and so it is here."""
    return np.floor(np.maximum(timesteps - 1e-6, 0.0))


def _sgm_uniform(num_steps: int, schedule: NoiseSchedule) -> tuple[Floats, Floats]:
    """Timesteps evenly from the last to the first, the first left out, sigma linear in the logarithm in between
    (Stability's generative-models, `LegacyDDPMDiscretization`, as the field's interfaces render it)."""
    timesteps = np.linspace(schedule.num_train_steps - 1, 0, num_steps + 1)[:-1]
    return timesteps, np.exp(np.interp(timesteps, np.arange(schedule.num_train_steps), np.log(schedule.sigmas)))
