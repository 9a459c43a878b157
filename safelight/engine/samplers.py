"""Schedules and step rules as tables of coefficients. Pure maths; knows no model and no task.

Every sampler lives in the coordinates x = x0 + sigma * n and moves a row by

    x' = a * x + b * denoised + c * previous_denoised + d * noise

with scalars that are known at admission, so rows of different samplers and steps share one update. Symbols are those
of the papers: Karras et al. 2022 (arXiv 2206.00364) for Euler and sigma, Song et al. 2021 (2010.02502) for DDIM, Lu et
al. 2022 (2211.01095) for DPM-Solver++.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from safelight.runs import SamplerName

Floats = NDArray[np.float64]


class Spacing(StrEnum):
    """How timesteps are spread over the training schedule (Lin et al. 2024, arXiv 2305.08891, table 2)."""

    LINSPACE = "linspace"
    LEADING = "leading"
    TRAILING = "trailing"


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """The noise a model was trained on. `spacing` is the model's own wish; without one each sampler has its default."""

    alphas_cumprod: Floats
    steps_offset: int = 1
    is_final_alpha_one: bool = False
    spacing: Spacing | None = None

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
) -> NoiseSchedule:
    """The schedule of Stable Diffusion 1.x and 2.x."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=torch.float32)
    alphas = alphas_from_betas(roots**2)
    return NoiseSchedule(alphas, spacing=spacing, is_final_alpha_one=is_final_alpha_one)


SIGMA, TIMESTEP, A, B, C, D = range(6)
"""Columns of a step table."""


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """All scalars of one image's way: `columns` [num_steps, 6]. The first latent is noise * `initial_scale`; what is
    decoded is the last latent * `final_scale`."""

    columns: Floats
    initial_scale: float
    final_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.columns)


def step_table(sampler: SamplerName, num_steps: int, schedule: NoiseSchedule) -> StepTable:
    """The table of `sampler` over `num_steps` steps."""
    return _SAMPLERS[sampler](num_steps, schedule)


def euler(num_steps: int, schedule: NoiseSchedule) -> StepTable:
    """Euler's method on the probability flow ODE (Karras et al. 2022, algorithm 2 without churn)."""
    timesteps, sigmas, initial_scale = _euler_grid(num_steps, schedule)
    ratio = sigmas[1:] / sigmas[:-1]
    return StepTable(_columns(timesteps, sigmas, a=ratio, b=1.0 - ratio), initial_scale)


def euler_ancestral(num_steps: int, schedule: NoiseSchedule) -> StepTable:
    """Euler to `sigma_down`, then fresh noise of `sigma_up` (k-diffusion, `sample_euler_ancestral`, eta 1)."""
    timesteps, sigmas, initial_scale = _euler_grid(num_steps, schedule)
    sigma, sigma_to = sigmas[:-1], sigmas[1:]
    sigma_up = np.sqrt(sigma_to**2 * (sigma**2 - sigma_to**2) / sigma**2)
    sigma_down = np.sqrt(sigma_to**2 - sigma_up**2)
    ratio = sigma_down / sigma
    return StepTable(_columns(timesteps, sigmas, a=ratio, b=1.0 - ratio, d=sigma_up), initial_scale)


def ddim(num_steps: int, schedule: NoiseSchedule) -> StepTable:
    """DDIM with eta 0 (Song et al. 2021, equation 12): in these coordinates Euler's step over DDIM's own grid."""
    timesteps = _whole_timesteps(num_steps, schedule, schedule.spacing or Spacing.LEADING)
    sigma = schedule.sigmas[timesteps.astype(int)]
    earlier = timesteps.astype(int) - schedule.num_train_steps // num_steps
    sigma_end = 0.0 if schedule.is_final_alpha_one else schedule.sigmas[0]
    sigma_to = np.where(earlier >= 0, schedule.sigmas[np.maximum(earlier, 0)], sigma_end)
    # Where the grid is uneven the next step starts from another sigma than this one aimed at; the variance-preserving
    # latent stays, so ours is rescaled.
    reached, taken_up = np.sqrt(sigma_to**2 + 1.0), np.sqrt(np.append(sigma[1:], sigma_to[-1]) ** 2 + 1.0)
    ratio, rescale = sigma_to / sigma, taken_up / reached
    columns = _columns(timesteps, np.append(sigma, sigma_to[-1]), a=ratio * rescale, b=(1.0 - ratio) * rescale)
    return StepTable(columns, float(np.sqrt(sigma[0] ** 2 + 1.0)), float(1.0 / reached[-1]))


def dpmpp_2m(num_steps: int, schedule: NoiseSchedule) -> StepTable:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2). First and last step are of first order."""
    timesteps = _multistep_timesteps(num_steps, schedule, schedule.spacing or Spacing.LINSPACE)
    sigmas = np.append(schedule.sigma_at(timesteps), 0.0)
    ratio = sigmas[1:] / sigmas[:-1]  # exp(-h)
    b, c = 1.0 - ratio, np.zeros_like(ratio)
    lambdas = -np.log(sigmas[:-1])
    h = np.diff(lambdas)
    for i in range(1, len(ratio) - 1):
        r = h[i - 1] / h[i]
        b[i], c[i] = (1.0 - ratio[i]) * (1.0 + 0.5 / r), -(1.0 - ratio[i]) * 0.5 / r
    return StepTable(_columns(timesteps, sigmas, a=ratio, b=b, c=c), float(np.sqrt(sigmas[0] ** 2 + 1.0)))


class _Sampler(Protocol):
    def __call__(self, num_steps: int, schedule: NoiseSchedule, /) -> StepTable: ...


_SAMPLERS: Mapping[SamplerName, _Sampler] = {
    SamplerName.EULER: euler,
    SamplerName.EULER_ANCESTRAL: euler_ancestral,
    SamplerName.DDIM: ddim,
    SamplerName.DPMPP_2M: dpmpp_2m,
}


def sample(
    x: torch.Tensor,
    denoised: torch.Tensor,
    columns: torch.Tensor,
    *,
    previous: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """One update of a whole batch. Latents are [B, C, h, w], `columns` [B, 6]; a missing operand counts as zero."""
    weights = columns[:, :, None, None, None]
    moved = torch.addcmul(weights[:, A] * x, weights[:, B], denoised)
    if previous is not None:
        moved.addcmul_(weights[:, C], previous)
    if noise is not None:
        moved.addcmul_(weights[:, D], noise)
    return moved


def initial_noise(seed: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """[C, h, w] in float32, as diffusers draws it from a CPU generator of this seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


def step_noise(seed: int, step: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """[C, h, w], a function of its arguments alone: Philox keyed by seed and step, then Box and Muller's transform."""
    half = (int(np.prod(shape)) + 1) // 2
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(2 * half)
    # 53 bits, shifted off zero so that the logarithm is finite.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2.0 * np.pi * uniform[half:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[: int(np.prod(shape))].reshape(shape).astype(np.float32)


def _columns(
    timesteps: Floats, sigmas: Floats, *, a: Floats, b: Floats, c: Floats | None = None, d: Floats | None = None
) -> Floats:
    zero = np.zeros_like(a)
    return np.stack([sigmas[:-1], timesteps, a, b, zero if c is None else c, zero if d is None else d], axis=1)


def _euler_grid(num_steps: int, schedule: NoiseSchedule) -> tuple[Floats, Floats, float]:
    """Timesteps, sigmas down to 0, and the scale of the first latent."""
    spacing = schedule.spacing or Spacing.LINSPACE
    if spacing is Spacing.LINSPACE:
        # The model sees float32 timesteps, and sigma belongs to what it sees.
        whole = np.linspace(0, schedule.num_train_steps - 1, num_steps, dtype=np.float32)[::-1]
        timesteps = whole.astype(np.float64)
    else:
        timesteps = _whole_timesteps(num_steps, schedule, spacing)
    sigmas = np.append(schedule.sigma_at(timesteps), 0.0)
    largest = float(sigmas[0])
    return timesteps, sigmas, (largest**2 + 1.0) ** 0.5 if spacing is Spacing.LEADING else largest


def _whole_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Floats:
    total = schedule.num_train_steps
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, total - 1, num_steps).round()[::-1]
    if spacing is Spacing.LEADING:
        steps = np.arange(num_steps)[::-1] * (total // num_steps) + schedule.steps_offset
        return steps.astype(np.float64)
    return np.arange(total, 0, -total / num_steps).round() - 1.0


def _multistep_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> Floats:
    """DPM-Solver's grids count the end as a point of their own."""
    total = schedule.num_train_steps
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, total - 1, num_steps + 1).round()[::-1][:-1]
    if spacing is Spacing.LEADING:
        steps = np.arange(num_steps + 1)[::-1][:-1] * (total // (num_steps + 1)) + schedule.steps_offset
        return steps.astype(np.float64)
    return _whole_timesteps(num_steps, schedule, spacing)
