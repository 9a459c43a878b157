"""Half-drawn runs of every family, XL's pair of text encoders too: gone on with elsewhere, or cancelled
beside others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safelight.engine.checkpoints import pack, unpack
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentCancelled, ImageReady, StepDone
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams, SamplerName
from tests.engine.drawing import assign, pictures_of, run_out

from .conftest import Pair
from .drawing import draw_with_engine, largest_difference

ASKED = RunParams(
    prompt="a red cat on mars", negative_prompt="snow", height=40, width=32, num_inference_steps=4, seed=5
)


def engine_of(pair: Pair) -> Engine:
    engine = Engine()
    engine.load("model", pair.ours)
    return engine


def assigned(run_id: str, params: RunParams) -> Assignment:
    return assign(run_id, params, model_key="model")


@pytest.mark.parametrize("sampler", [SamplerName.EULER_ANCESTRAL, SamplerName.UNIPC])
def test_a_run_gone_on_with_in_another_engine_ends_in_the_same_pixels(pair: Pair, sampler: SamplerName) -> None:
    params = replace(ASKED, sampler=sampler, num_images_per_prompt=2)
    first, second = engine_of(pair), engine_of(pair)
    first.submit(assigned("r", params))
    for _ in range(2):
        first.step()
    checkpoint = first.checkpoint("r")
    assert checkpoint is not None and [image.cursor for image in checkpoint.images] == [2, 2]
    second.submit(replace(assigned("r", params), checkpoint=unpack(pack(checkpoint))))
    whole, resumed = (run_out(engine)["r"] for engine in (first, second))
    assert sum(isinstance(event, StepDone) for event in resumed) == 2, "no step is repeated"
    for index, picture in pictures_of(whole).items():
        assert np.array_equal(picture, pictures_of(resumed)[index])


def test_a_run_cancelled_between_two_steps_leaves_the_others_as_if_alone(pair: Pair) -> None:
    engine = engine_of(pair)
    for run_id, seed in (("stays", 5), ("goes", 9)):
        engine.submit(assigned(run_id, replace(ASKED, seed=seed)))
    told = run_out(engine, between=lambda step: engine.cancel("goes") if step == 2 else None)
    assert isinstance(told["goes"][-1], AssignmentCancelled)
    assert not any(isinstance(event, ImageReady) for event in told["goes"])
    [alone] = draw_with_engine(pair.ours, [ASKED])
    assert largest_difference(list(pictures_of(told["stays"]).values()), alone) <= 1
