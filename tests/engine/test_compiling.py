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
FAKE, OTHER = (ModelSpec(f"{name}@1", Path(name)) for name in ("fake", "other"))


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


async def draw(host: EngineHost, run_id: str, *, wait_compiled: bool, spec: ModelSpec = FAKE) -> list[EngineEvent]:
    async with host.models.hold(spec, wait_compiled=wait_compiled):
        return [event async for event in host.generate(assign(run_id, CAT, model_key=spec.key))]


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
        assert isinstance((await draw(host, "first", wait_compiled=False))[-1], AssignmentDone)
        patient = asyncio.create_task(draw(host, "patient", wait_compiled=True))
        await asyncio.sleep(0.05)
        assert compiled.rows == [] and not patient.done()
        may_end.set()
        assert isinstance((await patient)[-1], AssignmentDone)
        await draw(host, "later", wait_compiled=False)
    assert compiled.rows == [1] * 6


async def test_a_model_that_cannot_be_compiled_is_drawn_as_it_was_loaded(caplog: pytest.LogCaptureFixture) -> None:
    def compile(model: ImageModel) -> ImageModel:
        raise RuntimeError("this processor is too old")

    async with hosting(compile) as host:
        assert isinstance((await draw(host, "r", wait_compiled=True))[-1], AssignmentDone)
    assert "fake@1 is drawn as it was loaded" in caplog.text and "too old" in caplog.text


async def test_a_model_that_is_being_compiled_stays_and_one_that_only_waits_for_it_may_leave() -> None:
    is_asked, may_end = threading.Event(), threading.Event()
    num_compiled = []

    def compile(model: ImageModel) -> ImageModel:
        is_asked.set()
        assert may_end.wait(20)
        num_compiled.append(model)
        return Compiled()

    async with hosting(compile) as host:
        await draw(host, "r", wait_compiled=False)
        await draw(host, "s", wait_compiled=False, spec=OTHER)
        await asyncio.to_thread(is_asked.wait)
        for spec in (FAKE, OTHER):
            host.models.retire(spec.key)
        await host.models.tidy()
        assert host.models.keys == {FAKE.key}
        may_end.set()
        await draw(host, "t", wait_compiled=True)
    assert len(num_compiled) == 1


async def test_who_is_cancelled_while_the_engine_works_does_not_take_it_down() -> None:
    async with hosting(lambda model: model) as host:
        gate = threading.Event()
        working = asyncio.create_task(host._in_engine(lambda: gate.wait(20)))
        asking = asyncio.create_task(host.checkpoint("nobody"))
        await asyncio.sleep(0.01)
        asking.cancel()
        gate.set()
        assert await working
        assert isinstance((await draw(host, "r", wait_compiled=True))[-1], AssignmentDone)
