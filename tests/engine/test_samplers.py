"""Samplers against data with known answers, and the noise they are fed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from safelight.engine.samplers import (
    SIGMA,
    TIMESTEP,
    StepTable,
    initial_noise,
    sample,
    scaled_linear_schedule,
    step_noise,
    step_table,
)
from safelight.runs import SamplerName

SCHEDULE = scaled_linear_schedule(is_final_alpha_one=True)
SHAPE = (4, 8, 8)


def walk(table: StepTable, denoise: object, seed: int = 0) -> torch.Tensor:
    """The way of one image in float64."""
    x = initial_noise(seed, SHAPE).double()[None] * table.initial_scale
    previous = torch.zeros_like(x)
    for step, row in enumerate(table.columns):
        denoised = denoise(x, row[SIGMA])  # type: ignore[operator]
        noise = torch.from_numpy(step_noise(seed, step, SHAPE)).double()[None]
        x = sample(x, denoised, torch.from_numpy(row)[None], previous=previous, noise=noise)
        previous = denoised
    return x * table.final_scale


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 150])
@pytest.mark.parametrize("sampler", list(SamplerName))
def test_every_sampler_ends_exactly_at_data_of_one_point(sampler: SamplerName, num_steps: int) -> None:
    x0 = torch.full((1, *SHAPE), 0.375, dtype=torch.float64)
    end = walk(step_table(sampler, num_steps, SCHEDULE), lambda x, sigma: x0)
    assert torch.allclose(end, x0, rtol=0, atol=1e-12)


def gaussian_error(sampler: SamplerName, num_steps: int) -> float:
    """How far the middle of the way is from the exact solution for data of deviation 0.8: there x falls in proportion
    to its deviation. The end is no measure, since the last step goes to sigma 0 in one stride."""
    std = 0.8
    table = step_table(sampler, num_steps, SCHEDULE)
    first, middle = table.columns[[0, num_steps // 2], SIGMA]
    start = initial_noise(0, SHAPE).double() * table.initial_scale
    exact = start * np.sqrt((std**2 + middle**2) / (std**2 + first**2))
    half = replace(table, columns=table.columns[: num_steps // 2], final_scale=1.0)
    reached = walk(half, lambda x, sigma: x * std**2 / (std**2 + sigma**2))
    return float((reached[0] - exact).abs().max())


@pytest.mark.parametrize(("sampler", "low", "high"), [(SamplerName.EULER, 1.8, 2.2), (SamplerName.DPMPP_2M, 3.4, 4.6)])
def test_the_order_of_a_sampler_shows_on_gaussian_data(sampler: SamplerName, low: float, high: float) -> None:
    assert low < gaussian_error(sampler, 80) / gaussian_error(sampler, 160) < high


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_ancestral_noise_keeps_the_deviation_and_the_others_add_none(sampler: SamplerName) -> None:
    table = step_table(sampler, 20, SCHEDULE)
    adds_noise = bool(table.columns[:, -1].any())
    assert adds_noise == (sampler is SamplerName.EULER_ANCESTRAL)
    assert table.columns[-1, -1] == 0.0, "the last step adds none"


def test_the_tables_of_fifty_steps_are_those_known_for_stable_diffusion() -> None:
    euler = step_table(SamplerName.EULER, 50, scaled_linear_schedule())
    assert np.allclose(euler.columns[[0, 1, 2, -2, -1], TIMESTEP], [999.0, 978.61, 958.22, 20.39, 0.0], atol=0.01)
    assert euler.initial_scale == pytest.approx(14.6146, abs=1e-4)
    ddim = step_table(SamplerName.DDIM, 50, scaled_linear_schedule())
    assert ddim.columns[[0, 1, 2, -2, -1], TIMESTEP].tolist() == [981, 961, 941, 21, 1]


def test_one_update_serves_rows_of_all_samplers() -> None:
    rows = [step_table(sampler, 9, SCHEDULE).columns[4] for sampler in SamplerName]
    columns = torch.from_numpy(np.stack(rows))
    x, denoised, previous, noise = (torch.randn(len(rows), *SHAPE, dtype=torch.float64) for _ in range(4))
    together = sample(x, denoised, columns, previous=previous, noise=noise)
    for place in range(len(rows)):
        one = slice(place, place + 1)
        alone = sample(x[one], denoised[one], columns[one], previous=previous[one], noise=noise[one])
        assert torch.equal(together[one], alone)


def test_step_noise_depends_on_seed_and_step_only_and_is_normal() -> None:
    shape = (4, 64, 64)
    drawn = step_noise(7, 3, shape)
    assert np.array_equal(drawn, step_noise(7, 3, shape))
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.02
    for other in (step_noise(8, 3, shape), step_noise(7, 4, shape)):
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.03
    assert drawn.dtype == np.float32
    assert step_noise(7, 3, (1, 3, 5)).shape == (1, 3, 5)


def test_step_noise_never_changes_between_versions() -> None:
    assert np.allclose(step_noise(42, 1, (1, 2, 2)).ravel(), FROZEN, atol=1e-6)


FROZEN = [-1.2727060, -0.4846582, -0.0722567, 0.4133128]
