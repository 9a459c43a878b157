"""A picture that begins from a picture is the one diffusers draws, whole or under a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
)
from PIL import Image
from pytest import MonkeyPatch

from safelight.engine.beginnings import StartPicture
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, ImageReady, Pixels
from safelight.engine.models.base import ImageModel
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams, SamplerName, Spacing

from .conftest import Pair
from .drawing import draw_with_engine, draw_with_pipeline, largest_difference

CHANGED = RunParams(
    prompt="a red cat riding a horse on mars",
    height=40,
    width=72,
    num_inference_steps=6,
    seed=11,
    num_images_per_prompt=2,
    strength=0.6,
)
ALIKE = [sampler for sampler in SamplerName if sampler not in (SamplerName.PNDM, SamplerName.LMS)]
"""diffusers begins these two in the middle as if there had been steps before; see docs/samplers.md."""


def picture(height: int = 40, width: int = 72) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5 % 256, columns * 3 % 256, (rows * columns) % 256], axis=-1).astype(np.uint8)


def left_half(height: int = 40, width: int = 72) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return mask


def draw(model: ImageModel, params: RunParams, start: StartPicture, **settings: int) -> list[Pixels]:
    engine = Engine(**settings)
    engine.load("model", model)
    engine.submit(Assignment("r", "model", params, tuple(range(params.num_images_per_prompt)), picture=start))
    drawn: dict[int, Pixels] = {}
    while engine.has_work:
        for _, event in engine.step():
            assert not isinstance(event, AssignmentFailed), event
            if isinstance(event, ImageReady):
                drawn[event.index] = event.pixels
    return [drawn[index] for index in sorted(drawn)]


def draw_with_diffusers(pair: Pair, params: RunParams, start: StartPicture, patch: MonkeyPatch) -> list[Pixels]:
    given: dict[str, Any] = {"image": Image.fromarray(start.pixels), "strength": params.strength}
    kind = AutoPipelineForImage2Image
    if start.mask is not None:
        kind = AutoPipelineForInpainting
        mask = Image.fromarray(start.mask.astype(np.uint8) * 255)
        given |= {"mask_image": mask, "height": params.height, "width": params.width}
    pipeline: DiffusionPipeline = kind.from_pipe(pair.theirs)
    pipeline.set_progress_bar_config(disable=True)
    return draw_with_pipeline(pipeline, params, patch, **given)


@pytest.mark.parametrize("sampler", ALIKE)
def test_a_changed_picture_is_the_one_diffusers_draws(
    pair: Pair, sampler: SamplerName, monkeypatch: MonkeyPatch
) -> None:
    params = replace(CHANGED, sampler=sampler)
    start = StartPicture(picture())
    theirs = draw_with_diffusers(pair, params, start, monkeypatch)
    assert largest_difference(draw(pair.ours, params, start), theirs) <= 1


@pytest.mark.parametrize("sampler", ALIKE)
def test_a_picture_painted_under_a_mask_is_the_one_diffusers_draws(
    pair: Pair, sampler: SamplerName, monkeypatch: MonkeyPatch
) -> None:
    # Of several images diffusers encodes the picture once, with the first one's seed: others cannot be drawn alone.
    params = replace(CHANGED, sampler=sampler, has_mask=True, num_images_per_prompt=1)
    start = StartPicture(picture(), left_half())
    theirs = draw_with_diffusers(pair, params, start, monkeypatch)
    assert largest_difference(draw(pair.ours, params, start), theirs) <= 1


@pytest.mark.parametrize("strength", [0.2, 0.99, 1.0])
@pytest.mark.parametrize("mask", [None, left_half()])
@pytest.mark.parametrize("spacing", [Spacing.KARRAS, Spacing.AUTOMATIC])
def test_any_strength_matches(
    tiny_v2: Pair, strength: float, mask: Any, spacing: Spacing, monkeypatch: MonkeyPatch
) -> None:
    params = replace(CHANGED, strength=strength, spacing=spacing, sampler=SamplerName.DPMPP_2M, num_images_per_prompt=1)
    start = StartPicture(picture(), mask)
    theirs = draw_with_diffusers(tiny_v2, params, start, monkeypatch)
    assert largest_difference(draw(tiny_v2.ours, params, start), theirs) <= 1


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_what_begins_from_a_picture_is_drawn_beside_what_does_not_as_alone(tiny_v1: Pair, sampler: SamplerName) -> None:
    params, start = replace(CHANGED, sampler=sampler), StartPicture(picture(), left_half())
    plain = replace(CHANGED, strength=None, sampler=SamplerName.EULER_ANCESTRAL, num_inference_steps=4)
    engine, drawn = Engine(), {}
    engine.load("model", tiny_v1.ours)
    engine.submit(Assignment("plain", "model", plain, (0, 1)))
    engine.submit(Assignment("masked", "model", params, (0, 1), picture=start))
    engine.submit(Assignment("whole", "model", params, (0, 1), picture=StartPicture(picture())))
    while engine.has_work:
        for run_id, event in engine.step():
            if isinstance(event, ImageReady):
                drawn[run_id, event.index] = event.pixels
    [alone] = draw_with_engine(tiny_v1.ours, [plain])
    assert largest_difference([drawn["plain", 0], drawn["plain", 1]], alone) <= 1
    assert largest_difference([drawn["masked", 0], drawn["masked", 1]], draw(tiny_v1.ours, params, start)) <= 1
    whole = draw(tiny_v1.ours, params, StartPicture(picture()))
    assert largest_difference([drawn["whole", 0], drawn["whole", 1]], whole) <= 1
