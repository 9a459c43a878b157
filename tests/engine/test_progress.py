"""How often an engine tells of its steps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.app import engine_for
from safelight.config import Settings
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentCancelled, EngineEvent, ImageReady, StepDone
from safelight.engine.models.loading import ModelLoader
from safelight.engine.tasks import ModelSpec
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign, run_out

CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=20, guidance_scale=1.0)


class Clock:
    """Goes on by a hundredth of a second each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def engine_that_tells_every(seconds: float) -> Engine:
    engine = Engine(progress_seconds=seconds, now=Clock())
    engine.load("fake@1", FakeModel())
    return engine


def told_steps(events: list[EngineEvent]) -> list[int]:
    return [event.steps_done for event in events if isinstance(event, StepDone)]


def test_steps_are_told_of_at_intervals_and_the_last_of_an_image_at_once() -> None:
    engine = engine_that_tells_every(0.15)
    engine.submit(assign("r", CAT))
    told = told_steps(run_out(engine)["r"])
    assert told[0] == 1 and told[-1] == 20
    assert 3 <= len(told) <= 7
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(told[:-1]))


def test_the_end_of_one_image_tells_how_far_the_others_are_too() -> None:
    engine = engine_that_tells_every(1000.0)
    engine.submit(assign("short", replace(CAT, num_inference_steps=5)))
    engine.submit(assign("long", CAT))
    told = run_out(engine)
    assert told_steps(told["long"]) == [1, 5, 20]
    assert told_steps(told["short"]) == [1, 5]
    last_step, picture = ([type(event) for event in told["long"]].index(kind) for kind in (StepDone, ImageReady))
    assert last_step < picture


def test_a_run_that_is_cancelled_tells_how_far_it_came() -> None:
    engine = engine_that_tells_every(1000.0)
    engine.submit(assign("r", CAT))
    told = run_out(engine, between=lambda step: engine.cancel("r") if step == 7 else None)["r"]
    assert told_steps(told) == [1, 7]
    assert isinstance(told[-1], AssignmentCancelled)


async def test_the_engine_of_a_server_tells_of_few_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelLoader, "prepare", lambda self: None)
    monkeypatch.setattr(ModelLoader, "load", lambda self, folder: FakeModel(step_seconds=0.002))
    monkeypatch.setattr(ModelLoader, "estimate_bytes", lambda self, folder: 0)
    host = engine_for(Settings(data=tmp_path), "cpu")
    await host.start()
    try:
        await host.load(ModelSpec("fake@1", Path("fake")))
        told = told_steps([event async for event in host.generate(assign("r", replace(CAT, num_inference_steps=150)))])
    finally:
        await host.close()
    assert 2 <= len(told) < 75 and told[-1] == 150
