"""Images that begin from pictures, with a model whose answers are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safelight.catalog import PINHOLE_FOLDER
from safelight.engine.beginnings import StartPicture
from safelight.engine.checkpoints import pack, unpack
from safelight.engine.engine import Engine
from safelight.engine.events import Pixels
from safelight.engine.models.loading import load_model
from safelight.runs import RunParams, SamplerName
from safelight.testing import FakeModel, colour_of

from .drawing import assign, pictures_of, run_out

CAT = RunParams(
    prompt="a cat",
    height=64,
    width=96,
    num_inference_steps=10,
    guidance_scale=1.0,
    sampler=SamplerName.DPMPP_2M_SDE,
    strength=0.5,
)
GREY = np.full((64, 96, 3), 200, dtype=np.uint8)


def draw(params: RunParams, start: StartPicture, model: FakeModel | None = None) -> Pixels:
    engine = Engine()
    engine.load("fake@1", model or FakeModel())
    engine.submit(replace(assign("r", params), picture=start))
    return pictures_of(run_out(engine)["r"])[0]


def test_only_the_steps_that_are_left_are_drawn() -> None:
    model = FakeModel()
    draw(CAT, StartPicture(GREY), model)
    assert model.calls["predict"] == 5 and CAT.num_skipped_steps == 5
    assert replace(CAT, strength=0.01).num_skipped_steps == 9, "one step is always left"
    assert replace(CAT, strength=1.0).num_skipped_steps == 0
    assert CAT.pixel_steps == 64 * 96 * 5


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_white_is_painted_anew_and_black_stays_as_it_was(sampler: SamplerName) -> None:
    mask = np.zeros((64, 96), dtype=bool)
    mask[:, 48:] = True
    drawn = draw(replace(CAT, sampler=sampler, has_mask=True), StartPicture(GREY, mask))
    assert (drawn[:, :48] == 200).all()
    assert (np.abs(drawn[:, 48:].astype(int) - colour_of("a cat")) <= 1).all()


def test_a_run_that_goes_on_from_a_checkpoint_keeps_what_the_mask_keeps() -> None:
    mask = np.zeros((64, 96), dtype=bool)
    mask[:, 48:] = True
    asked = replace(assign("r", replace(CAT, has_mask=True)), picture=StartPicture(GREY, mask))
    first, second = Engine(), Engine()
    for engine in (first, second):
        engine.load("fake@1", FakeModel(std=0.5))
    first.submit(asked)
    for _ in range(3):
        first.step()
    checkpoint = first.checkpoint("r")
    assert checkpoint is not None
    second.submit(replace(asked, checkpoint=unpack(pack(checkpoint))))
    whole, resumed = (pictures_of(run_out(engine)["r"])[0] for engine in (first, second))
    assert (whole == resumed).all() and (resumed[:, :48] == 200).all()


def test_pinhole_changes_a_picture_of_any_size_less_the_weaker_it_is_asked_to() -> None:
    model = load_model(PINHOLE_FOLDER)
    rows, columns = np.mgrid[0:104, 0:72]
    start = StartPicture(np.stack([rows * 2, columns * 3, rows + columns], axis=-1).astype(np.uint8))
    params = replace(CAT, height=104, width=72, num_inference_steps=4, sampler=SamplerName.EULER)
    changes = []
    for strength in (0.25, 1.0):
        engine = Engine()
        engine.load("fake@1", model)
        engine.submit(replace(assign("r", replace(params, strength=strength)), picture=start))
        drawn = pictures_of(run_out(engine)["r"])[0]
        assert drawn.shape == (104, 72, 3)
        changes.append(np.abs(drawn.astype(int) - start.pixels).mean())
    assert changes[0] < changes[1]
