"""Samplers that look back at earlier calls: DPM-Solver++(2M), its stochastic form, UniPC, LMS, PNDM."""

from __future__ import annotations

import numpy as np

from safelight.engine.samplers.schedules import Floats, Grid, NoiseSchedule, lambda_grid, sigma_grid, whole_timesteps
from safelight.engine.samplers.tables import A, B, C, D, E, F, StepTable, table_over
from safelight.runs import Spacing

_LMS_ORDER = 4

_ADAMS_BASHFORTH = (
    (1.0, 0, 0, 0),
    (1.5, -0.5, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the latest outputs, the newest first, by how many there are."""


def dpmpp_2m(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 2). First and last step are of first
    order."""
    grid = lambda_grid(num_steps, schedule, spacing).after(first)
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]  # exp(-h)
    slope = _half_over_r(grid.sigmas)
    return table_over(grid, {A: ratio, B: (1.0 - ratio) * (1.0 + slope), C: -(1.0 - ratio) * slope, F: 1.0})


def dpmpp_2m_sde(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022, section 5): x decays by exp(-2h), and noise makes up for it."""
    grid = lambda_grid(num_steps, schedule, spacing).after(first)
    decay = (grid.sigmas[1:] / grid.sigmas[:-1]) ** 2
    slope = _half_over_r(grid.sigmas)
    noise = grid.sigmas[1:] * np.sqrt(1.0 - decay)
    return table_over(grid, {A: decay, B: (1.0 - decay) * (1.0 + slope), C: -(1.0 - decay) * slope, D: noise, F: 1.0})


def unipc(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 and 6), predicting x0.

    Predictor and corrector of a step let x decay alike. So the corrected latent is the predicted one plus
    kappa * (denoised - h_1) + mu * (h_2 - h_1), and one row corrects where it stands and predicts the next.
    """
    grid = lambda_grid(num_steps, schedule, spacing).after(first)
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    slope = _half_over_r(grid.sigmas)
    kappa, mu = _unipc_correction(grid.sigmas)
    b = ratio * kappa + (1.0 - ratio) * (1.0 + slope)
    c1 = -ratio * (kappa + mu) - (1.0 - ratio) * slope
    return table_over(grid, {A: ratio, B: b, C: c1, C + 1: ratio * mu, F: 1.0})


def lms(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Linear multistep of order 4 (k-diffusion, `sample_lms`): the polynomial through the latest slopes
    (x - denoised) / sigma, integrated over the step. Slopes are remembered."""
    grid = sigma_grid(num_steps, schedule, spacing).after(first)
    sigma = grid.sigmas[:-1]
    num_steps = len(sigma)
    weights = np.zeros((num_steps, _LMS_ORDER))
    for order in range(1, min(num_steps, _LMS_ORDER) + 1):
        steps = np.arange(order - 1, num_steps if order == _LMS_ORDER else order)
        nodes = grid.sigmas[steps[:, None] - np.arange(order)]
        weights[steps, :order] = _integrals_of_lagrange(nodes, grid.sigmas[steps], grid.sigmas[steps + 1])
    newest = weights[:, 0] / sigma
    older = {C + ago: weights[:, 1 + ago] for ago in range(_LMS_ORDER - 1)}
    return table_over(grid, {A: 1.0 + newest, B: -newest, E: 1.0 / sigma, F: -1.0 / sigma} | older)


def pndm(num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int = 0) -> StepTable:
    """Pseudo linear multistep of order 4 (Liu et al. 2022, arXiv 2202.09778, equations 9 and 12), as diffusers' PLMS
    begins it: the second timestep is asked twice, and with the mean of two outputs the first step is done again.

    What is mixed and remembered is what the network said: epsilon or v.
    """
    timesteps = whole_timesteps(num_steps, schedule, spacing)[first:]
    stride = schedule.num_train_steps // num_steps
    asked = np.concatenate([timesteps[:2], timesteps[1:]]).astype(int)
    start = asked.copy()
    start[1:2] += stride
    sigma_end = 0.0 if schedule.is_final_alpha_one else float(schedule.sigmas[0])
    sigma_to = np.where(start >= stride, schedule.sigmas[np.maximum(start - stride, 0)], sigma_end)
    keep, add = _transfer(schedule.sigmas[start], sigma_to, is_v=schedule.is_v_prediction)
    weights = np.array([_ADAMS_BASHFORTH[min(max(call - 1, 0), 3)] for call in range(len(asked))])
    weights[1:2, :2] = 0.5
    weights *= add[:, None]
    if len(asked) > 1:
        # Back to the first latent, by undoing the step that was made with the first output.
        keep[1] /= keep[0]
        weights[1, 1] -= keep[1] * add[0]
    return _in_sigma(
        Grid(asked.astype(np.float64), np.append(schedule.sigmas[asked], 0.0), 1.0), keep, weights, schedule
    )


def _in_sigma(grid: Grid, keep: Floats, weights: Floats, schedule: NoiseSchedule) -> StepTable:
    """The table of y' = keep * y + weights . (output, h_1, h_2, h_3), where y = x / sqrt(sigma^2 + 1) stays the same
    where a step starts from another sigma than the last one aimed at. The last latent is y itself."""
    sigma, is_v = grid.sigmas[:-1], schedule.is_v_prediction
    g = np.sqrt(sigma**2 + 1.0)
    # The network's output, of x and of what it says x is without noise.
    e, f = (1.0 / (g * sigma), -g / sigma) if is_v else (1.0 / sigma, -1.0 / sigma)
    taken_up = np.append(g[1:], 1.0)
    weights = weights * taken_up[:, None]
    is_kept = np.arange(len(sigma)) != 1
    coefficients = {A: taken_up * keep / g + weights[:, 0] * e, B: weights[:, 0] * f, E: e * is_kept, F: f * is_kept}
    older = {C + ago: weights[:, 1 + ago] for ago in range(weights.shape[1] - 1)}
    return table_over(Grid(grid.timesteps, grid.sigmas, float(g[0])), coefficients | older)


def _transfer(sigma: Floats, sigma_to: Floats, *, is_v: bool) -> tuple[Floats, Floats]:
    """y' = keep * y + add * output: DDIM's step (Song et al. 2021, arXiv 2010.02502, equation 12) on latents
    y = x / sqrt(sigma^2 + 1). For v, epsilon = (v + sigma * y) / sqrt(sigma^2 + 1)."""
    g, g_to = np.sqrt(sigma**2 + 1.0), np.sqrt(sigma_to**2 + 1.0)
    stride = sigma_to - sigma
    if is_v:
        return (g + stride * sigma / g) / g_to, stride / g / g_to
    return g / g_to, stride / g_to


def _half_over_r(sigmas: Floats) -> Floats:
    """1 / 2r, r = h_(i-1) / h_i, in steps of second order; 0 in the first and in the last."""
    found = np.zeros(len(sigmas) - 1)
    h = -np.diff(np.log(sigmas[:-1]))
    found[1:-1] = 0.5 * h[1:] / h[:-1]
    return found


def _unipc_correction(sigmas: Floats) -> tuple[Floats, Floats]:
    """kappa and mu of each step, from the step before it: of first order where that was the first."""
    kappa, mu = np.zeros(len(sigmas) - 1), np.zeros(len(sigmas) - 1)
    h = -np.diff(np.log(sigmas[:-1]))
    grown = -np.expm1(-h)
    kappa[1:] = 0.5 * grown
    r = -h[:-1] / h[1:]
    h, grown = h[1:], grown[1:]
    # b_k = k! h phi_(k+1)(h) / B(h) of equation 11 with h -> -h; R is [[1, 1], [r, 1]].
    phi_2 = grown / h - 1.0
    phi_3 = -phi_2 / h - 0.5
    b_1, b_2 = -phi_2 / grown, -2.0 * phi_3 / grown
    rho_1 = (b_1 - b_2) / (1.0 - r)
    kappa[2:], mu[2:] = grown * (b_1 - rho_1), grown * (rho_1 - 0.5) / r
    return kappa, mu


def _integrals_of_lagrange(nodes: Floats, start: Floats, end: Floats) -> Floats:
    """[n, k]: the integral from start to end [n] of each basis polynomial over nodes [n, k], k at most 4."""
    middle, half = (start + end) / 2.0, (end - start) / 2.0
    # Two points of Gauss and Legendre are exact up to cubics.
    points = middle[:, None] + half[:, None] * np.array([-1.0, 1.0]) / np.sqrt(3.0)
    away = points[:, :, None] - nodes[:, None, :]
    integrals = np.empty_like(nodes)
    for place in range(nodes.shape[1]):
        others = np.arange(nodes.shape[1]) != place
        between = nodes[:, [place]] - nodes[:, others]
        integrals[:, place] = half * away[:, :, others].prod(axis=2).sum(axis=1) / between.prod(axis=1)
    return integrals
