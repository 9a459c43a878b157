"""Models that are drawn with at once, and compiled meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.config import EngineSettings
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentDone, EncodedPrompt, EngineEvent
from safelight.engine.host import EngineHost
from safelight.engine.models.base import ImageModel
from safelight.engine.tasks import ModelSpec
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign, run_out

CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=3, guidance_scale=1.0)
FAKE = ModelSpec("fake@1", Path("fake"))


class Compiled(FakeModel):
    def backend_of(self, latent_shape: tuple[int, int, int], num_windows: int = 1) -> str:
        return "compiled"


@asynccontextmanager
async def hosting(compile: Callable[[ImageModel], ImageModel]) -> AsyncIterator[EngineHost]:
    host = EngineHost(EngineSettings(), load=lambda _: FakeModel(), compile=compile)
    await host.start()
    try:
        async with asyncio.timeout(20):
            yield host
    finally:
        await host.close()


async def draw(host: EngineHost, run_id: str, *, is_compiled: bool) -> list[EngineEvent]:
    async with host.models.hold(FAKE, is_compiled=is_compiled):
        return [event async for event in host.generate(assign(run_id, CAT))]


def test_a_run_ends_in_the_networks_that_it_began_in_and_never_shares_a_batch_with_others() -> None:
    plain, compiled = FakeModel(), Compiled()
    engine = Engine()
    engine.load("fake@1", plain)
    engine.submit(assign("before", CAT))
    engine.step()
    engine.load("fake@1", compiled)
    engine.submit(assign("after", replace(CAT, num_inference_steps=5)))
    told = run_out(engine)
    assert (plain.rows, plain.calls["decode"]) == ([1] * 3, 1)
    assert (compiled.rows, compiled.calls["decode"]) == ([1] * 5, 1)
    assert EncodedPrompt((), "compiled") in told["after"]


async def test_who_does_not_ask_for_the_compiled_model_does_not_wait_for_it() -> None:
    may_end, compiled = threading.Event(), Compiled()

    def compile(model: ImageModel) -> ImageModel:
        assert may_end.wait(20)
        return compiled

    async with hosting(compile) as host:
        assert isinstance((await draw(host, "first", is_compiled=False))[-1], AssignmentDone)
        patient = asyncio.create_task(draw(host, "patient", is_compiled=True))
        await asyncio.sleep(0.05)
        assert compiled.rows == [] and not patient.done()
        may_end.set()
        assert isinstance((await patient)[-1], AssignmentDone)
        await draw(host, "later", is_compiled=False)
    assert compiled.rows == [1] * 6


async def test_a_model_that_cannot_be_compiled_is_drawn_as_it_was_loaded(caplog: pytest.LogCaptureFixture) -> None:
    def compile(model: ImageModel) -> ImageModel:
        raise RuntimeError("this processor is too old")

    async with hosting(compile) as host:
        assert isinstance((await draw(host, "r", is_compiled=True))[-1], AssignmentDone)
    assert "fake@1 is drawn as it was loaded" in caplog.text and "too old" in caplog.text


async def test_a_model_that_left_while_it_was_compiled_is_not_served_again() -> None:
    is_asked, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()

    def compile(model: ImageModel) -> ImageModel:
        is_asked.set()
        assert may_end.wait(20)
        has_ended.set()
        return Compiled()

    async with hosting(compile) as host:
        await draw(host, "r", is_compiled=False)
        await asyncio.to_thread(is_asked.wait)
        host.models.retire(FAKE.key)
        await host.models.tidy()
        may_end.set()
        await asyncio.to_thread(has_ended.wait)
        await asyncio.sleep(0.05)
        assert host.models.keys == frozenset()
