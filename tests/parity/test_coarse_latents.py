"""Autoencoders that shrink more than eightfold still answer the sides that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from safelight.engine.models.base import ImageModel
from safelight.engine.models.loading import load_model
from safelight.runs import RunParams

from .drawing import draw_with_diffusers, draw_with_engine, largest_difference
from .tiny_models import make_pipeline

ASKED = RunParams(prompt="a cat", height=64, width=96, num_inference_steps=2, seed=3)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageModel, StableDiffusionPipeline]:
    folder: Path = tmp_path_factory.mktemp("coarse") / "model"
    make_pipeline(folder, is_v2=True, num_levels=6, num_channels=16)
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    return load_model(folder), theirs


def test_sides_that_fit_are_drawn_as_diffusers_draws_them(
    coarse: tuple[ImageModel, StableDiffusionPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = coarse
    assert ours.latent_shape(64, 96) == (16, 2, 3)
    [drawn] = draw_with_engine(ours, [ASKED])
    assert largest_difference(drawn, draw_with_diffusers(theirs, ASKED, monkeypatch)) <= 1


def test_other_sides_are_the_middle_of_the_next_larger_picture(
    coarse: tuple[ImageModel, StableDiffusionPipeline],
) -> None:
    ours, _ = coarse
    [[whole]], [[cropped]] = (
        draw_with_engine(ours, [ASKED]),
        draw_with_engine(ours, [RunParams(prompt="a cat", height=48, width=72, num_inference_steps=2, seed=3)]),
    )
    assert cropped.shape == (48, 72, 3)
    assert np.array_equal(cropped, whole[8:56, 12:84])
