"""Rows of all samplers in one batch, at different steps, against data of one point: each ends at its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safelight.engine.engine import Engine
from safelight.engine.events import Pixels
from safelight.runs import RunParams, SamplerName, Spacing
from safelight.testing import FakeModel, colour_of

from .drawing import assign, pictures_of, run_out

LONG = RunParams(prompt="the one that stays longest", height=64, width=64, num_inference_steps=60, guidance_scale=1.0)


def params_of(number: int, sampler: SamplerName, spacing: Spacing = Spacing.AUTOMATIC) -> RunParams:
    """No two with the same number of steps, so that no two finish from the same sigma at the same time."""
    return RunParams(
        prompt=f"cat {number}",
        height=64,
        width=64,
        num_inference_steps=5 + 2 * number,
        guidance_scale=1.0,
        sampler=sampler,
        spacing=spacing,
        seed=number,
    )


EVERY_SAMPLER = [params_of(number, sampler) for number, sampler in enumerate(SamplerName)]
EVERY_SPACING = [params_of(number, SamplerName.HEUN, spacing) for number, spacing in enumerate(Spacing)]


class Swapping(FakeModel):
    """Denoises every row with its neighbour's sigma."""

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        return super().predict(x, sigma.roll(1), timestep, conditioning)


def draw_together(model: FakeModel, asked: list[RunParams]) -> list[Pixels]:
    """All at once, beside one that finishes last and is not looked at."""
    engine = Engine(max_resident_images=32, max_batch_rows=32)
    engine.load("fake@1", model)
    for number, params in enumerate([*asked, LONG]):
        engine.submit(assign(str(number), params))
    told = run_out(engine)
    return [pictures_of(told[str(number)])[0] for number in range(len(asked))]


def distance(picture: Pixels, params: RunParams) -> int:
    """From the colour of the prompt, in steps of 1/255."""
    return int(np.abs(picture.astype(int) - colour_of(params.prompt)).max())


@pytest.mark.parametrize("asked", [EVERY_SAMPLER, EVERY_SPACING], ids=["samplers", "spacings"])
def test_rows_of_every_kind_end_at_their_own_point(asked: list[RunParams]) -> None:
    for picture, params in zip(draw_together(FakeModel(), asked), asked, strict=True):
        assert distance(picture, params) <= 1, params


@pytest.mark.parametrize("asked", [EVERY_SAMPLER, EVERY_SPACING], ids=["samplers", "spacings"])
def test_a_row_that_is_given_its_neighbours_sigma_does_not(asked: list[RunParams]) -> None:
    for picture, params in zip(draw_together(Swapping(), asked), asked, strict=True):
        assert distance(picture, params) > 3, params


def test_a_task_remembers_as_much_as_its_sampler_looks_back() -> None:
    engine = Engine(max_resident_images=32, max_batch_rows=32)
    engine.load("fake@1", FakeModel())
    for params in EVERY_SAMPLER:
        engine.submit(assign(params.sampler, params))
    seen: dict[str, int] = {}

    def look(step: int) -> None:
        if step == 4:
            tasks = [task for run in engine._runs.values() for task in run.tasks]
            seen.update({task.run.run_id: len(task.remembered) for task in tasks})
            assert all(len(task.remembered) == task.table.depth for task in tasks)

    run_out(engine, between=look)
    assert seen["euler"] == seen["ddim"] == 0 and seen["dpmpp_2m"] == 1 and seen["lms"] == 3
