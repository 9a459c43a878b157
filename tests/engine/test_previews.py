"""Small pictures of images under way: for whoever watches, once a second, and never at anybody's cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentDone, EngineEvent, Pixels, PreviewReady
from safelight.engine.previews import WATCH_SECONDS, Previewer
from safelight.runs import RunParams
from safelight.testing import FakeModel, colour_of

from .drawing import assign, run_out

CAT = RunParams(prompt="a cat", height=64, width=72, num_inference_steps=40, guidance_scale=1.0)


class Clock:
    """A step takes a quarter of a second by it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def tick(self, step: int) -> None:
        self.seconds += 0.25


def previews_of(events: list[EngineEvent]) -> list[PreviewReady]:
    return [event for event in events if isinstance(event, PreviewReady)]


def engine_with(model: FakeModel, clock: Clock) -> Engine:
    engine = Engine(now=clock)
    engine.load("fake@1", model)
    return engine


def test_nothing_is_made_when_nobody_watches() -> None:
    model = FakeModel()
    engine = engine_with(model, clock := Clock())
    engine.submit(assign("r", CAT))
    assert previews_of(run_out(engine, between=clock.tick)["r"]) == []
    assert model.calls["decode"] == 1, "the picture, and no fit of colours"


def test_a_watched_run_has_a_preview_at_once_and_then_one_a_second_until_nobody_is_heard_of() -> None:
    engine = engine_with(FakeModel(), clock := Clock())
    engine.submit(assign("watched", replace(CAT, num_images_per_prompt=2)))
    engine.submit(assign("other", CAT))

    def tick(step: int) -> None:
        clock.tick(step)
        if step in (2, 3):
            engine.watch("watched")

    told = run_out(engine, between=tick)
    assert previews_of(told["other"]) == []
    previews = previews_of(told["watched"])
    assert len(previews) == WATCH_SECONDS + 1, "the first at once; nobody was heard of after a quarter of a second"
    assert {preview.index for preview in previews} == {0}, "of a run its first image"
    assert all(preview.pixels.shape == (8, 9, 3) and preview.pixels.dtype == np.uint8 for preview in previews)


def test_a_preview_has_about_the_colours_that_the_picture_will_have() -> None:
    engine = engine_with(FakeModel(), clock := Clock())
    prompts = sorted(("a cat", "a dog", "a red boat", "snow", "night"), key=colour_of)
    for prompt in prompts:
        engine.submit(assign(prompt, replace(CAT, prompt=prompt)))
        engine.watch(prompt)
    told = run_out(engine, between=clock.tick)
    seen = [float(previews_of(told[prompt])[0].pixels.mean()) for prompt in prompts]
    assert seen == sorted(seen)
    assert max(abs(mean - colour_of(prompt)) for mean, prompt in zip(seen, prompts, strict=True)) < 35


def test_the_map_is_fitted_to_the_models_own_decoder() -> None:
    class Striped(FakeModel):
        """Decodes 16 pixels for each place, the upper half from one channel, the lower from another."""

        def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
            return 4, height // 16, width // 16

        def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
            upper, lower = (latent[channel].clamp(-3, 3).numpy() * 40 + 128 for channel in (1, 3))
            rows = np.stack([upper, lower], axis=1).repeat(8, axis=1).reshape(height, -1).repeat(16, axis=1)
            return rows[:, :, None].repeat(3, axis=2).astype(np.uint8)

    latent = torch.zeros(4, 2, 3)
    latent[1], latent[3] = 1.0, -1.0
    pixels = Previewer(Striped()).pixels(latent)
    assert pixels.shape == (4, 6, 3)
    assert pixels[0].float().mean() == pytest.approx(168, abs=3) and pixels[1].float().mean() == pytest.approx(
        88, abs=3
    )


def test_a_preview_that_cannot_be_made_harms_no_run() -> None:
    class Unfit(FakeModel):
        def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
            if height != CAT.height:
                raise ValueError("only pictures of cats are decoded here")
            return super().decode(latent, height, width)

    engine = engine_with(Unfit(), clock := Clock())
    engine.submit(assign("r", CAT))
    engine.watch("r")
    events = run_out(engine, between=clock.tick)["r"]
    assert isinstance(events[-1], AssignmentDone) and previews_of(events) == []


def test_a_cancelled_run_has_no_more_previews_and_watching_what_is_not_there_does_nothing() -> None:
    engine = engine_with(FakeModel(), clock := Clock())
    engine.submit(assign("r", CAT))
    engine.watch("r")
    engine.watch("never")

    def cancel(step: int) -> None:
        clock.tick(step)
        if step == 1:
            engine.cancel("r")

    assert len(previews_of(run_out(engine, between=cancel)["r"])) == 1
