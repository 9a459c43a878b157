"""The engine's thread from the loop's side."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.config import EngineSettings
from safelight.engine.events import AssignmentCancelled, AssignmentDone, EngineEvent, StepDone
from safelight.engine.host import EngineHost
from safelight.engine.models.base import ImageModel
from safelight.engine.tasks import ModelSpec
from safelight.errors import ModelError
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign, code_of, pictures_of

CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=4, guidance_scale=1.0)
LONG = replace(CAT, num_inference_steps=150)


@asynccontextmanager
async def hosting(load: Callable[[Path], ImageModel], **settings: int) -> AsyncIterator[EngineHost]:
    host = EngineHost(EngineSettings(**settings), load=load)  # type: ignore[arg-type]
    await host.start()
    try:
        await host.load(ModelSpec("fake@1", Path("fake")))
        yield host
    finally:
        await host.close()


async def events_of(stream: AsyncIterator[EngineEvent]) -> list[EngineEvent]:
    return [event async for event in stream]


async def test_runs_handed_in_at_once_are_drawn_together() -> None:
    model = FakeModel(step_seconds=0.005)
    async with hosting(lambda folder: model) as host:
        streams = [host.generate(assign(f"r{number}", CAT)) for number in range(4)]
        told = await asyncio.gather(*(events_of(stream) for stream in streams))
    assert all(isinstance(events[-1], AssignmentDone) and len(pictures_of(events)) == 1 for events in told)
    assert max(model.rows) == 4


async def test_a_cancel_takes_effect_within_one_step() -> None:
    model = FakeModel(step_seconds=0.02)
    async with hosting(lambda folder: model) as host:
        events = []
        async for event in host.generate(assign("r", LONG)):
            events.append(event)
            if isinstance(event, StepDone) and event.steps_done == 3:
                host.cancel("r")
        assert isinstance(events[-1], AssignmentCancelled)
        assert model.calls["predict"] <= 4 + 1, "the step under way when the word reached the thread"


async def test_a_cancelled_run_ends_before_the_next_step_of_the_others() -> None:
    entered, go_on = threading.Semaphore(0), threading.Semaphore(0)

    class Stepwise(FakeModel):
        def predict(self, x, sigma, timestep, conditioning):  # type: ignore[no-untyped-def]
            entered.release()
            assert go_on.acquire(timeout=10)
            return super().predict(x, sigma, timestep, conditioning)

    async with hosting(lambda folder: Stepwise()) as host:
        streams = [asyncio.create_task(events_of(host.generate(assign(name, CAT)))) for name in ("goes", "stays")]
        await asyncio.to_thread(entered.acquire)
        host.cancel("goes")
        go_on.release()
        await asyncio.to_thread(entered.acquire)
        # The next step has begun and waits; the end of the run was told before it.
        async with asyncio.timeout(5):
            told = await streams[0]
        assert isinstance(told[-1], AssignmentCancelled) and not streams[1].done()
        go_on.release(9)
        assert isinstance((await streams[1])[-1], AssignmentDone)


async def test_leaving_the_events_cancels_the_run() -> None:
    model = FakeModel(step_seconds=0.01)
    async with hosting(lambda folder: model) as host:
        stream = host.generate(assign("r", LONG))
        assert await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            while host.num_free_images < 16:  # noqa: ASYNC110 - nothing tells when room is free
                await asyncio.sleep(0.01)
        assert model.calls["predict"] < 20


async def test_a_run_that_comes_back_before_its_cancel_took_effect_is_drawn() -> None:
    async with hosting(lambda folder: FakeModel(step_seconds=0.01)) as host:
        old = host.generate(assign("r", LONG))
        assert await anext(old)
        new = host.generate(assign("r", CAT))
        await old.aclose()  # type: ignore[attr-defined]
        assert isinstance((await events_of(new))[-1], AssignmentDone)
        assert host.num_free_images == 16


async def test_room_is_taken_the_moment_a_run_is_handed_in() -> None:
    async with hosting(lambda folder: FakeModel(), max_resident_images=5) as host:
        stream = host.generate(assign("r", replace(CAT, num_images_per_prompt=3)))
        assert host.num_free_images == 2
        await events_of(stream)
        assert host.num_free_images == 5


async def test_a_model_that_cannot_be_loaded_is_a_model_error() -> None:
    def broken(folder: Path) -> ImageModel:
        if folder.name == "fake":
            return FakeModel()
        if folder.name == "unsafe":
            raise ModelError("a pickle")
        raise ZeroDivisionError("bad weights")

    async with hosting(broken) as host:
        with pytest.raises(ModelError, match="a pickle"):
            await host.load(ModelSpec("unsafe@1", Path("unsafe")))
        with pytest.raises(ModelError, match=r"cannot be loaded \(ZeroDivisionError: bad weights\)"):
            await host.load(ModelSpec("broken@1", Path("broken")))
        assert not host.models.is_loaded("broken@1") and host.models.is_loaded("fake@1")


async def test_running_work_goes_on_while_a_model_loads() -> None:
    release = threading.Event()

    def load(folder: Path) -> ImageModel:
        if folder.name == "slow":
            assert release.wait(10)
        return FakeModel()

    async with hosting(load) as host:
        loading = asyncio.create_task(host.load(ModelSpec("slow@1", Path("slow"))))
        events = await events_of(host.generate(assign("r", CAT)))
        assert isinstance(events[-1], AssignmentDone) and not loading.done()
        release.set()
        await loading
        assert host.models.is_loaded("slow@1")


async def test_a_hung_step_shows_in_the_time_since_progress() -> None:
    release, entered = threading.Event(), threading.Event()

    class Hung(FakeModel):
        def predict(self, x, sigma, timestep, conditioning):  # type: ignore[no-untyped-def]
            entered.set()
            assert release.wait(10)
            return super().predict(x, sigma, timestep, conditioning)

    async with hosting(lambda folder: Hung()) as host:
        assert host.seconds_since_progress == 0.0
        stream = host.generate(assign("r", CAT))
        await asyncio.to_thread(entered.wait, 5)
        await asyncio.sleep(0.2)
        assert host.seconds_since_progress >= 0.15
        release.set()
        await events_of(stream)
        assert host.seconds_since_progress == 0.0


async def test_closing_answers_whoever_waits_and_refuses_what_comes_later() -> None:
    async with hosting(lambda folder: FakeModel(step_seconds=0.01)) as host:
        waiting = asyncio.create_task(events_of(host.generate(assign("r", LONG))))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await host.close()
        assert time.monotonic() - began < 2
        assert code_of(await waiting) == "engine_stopped"
        assert code_of(await events_of(host.generate(assign("s", CAT)))) == "engine_stopped"


async def test_a_failure_of_the_loop_itself_answers_everyone_and_the_engine_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with hosting(lambda folder: FakeModel()) as host:
        with monkeypatch.context() as patch:
            patch.setattr(host._engine._scheduler, "choose", lambda: 1 / 0)
            assert code_of(await events_of(host.generate(assign("r", CAT)))) == "engine_failed"
        assert isinstance((await events_of(host.generate(assign("s", CAT))))[-1], AssignmentDone)


@pytest.mark.parametrize("where", ["denoiser", "loop"])
async def test_a_lost_device_ends_the_engine_and_answers_everyone_now_and_later(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model = FakeModel(step_seconds=0.005)
    async with hosting(lambda folder: model) as host:
        monkeypatch.setattr("safelight.engine.faults.is_lost", lambda device: True)
        under_way = [asyncio.create_task(events_of(host.generate(assign(f"r{number}", LONG)))) for number in range(2)]
        await asyncio.sleep(0.05)
        target, name = (model, "predict") if where == "denoiser" else (host._engine._accounts, "settle")
        monkeypatch.setattr(target, name, lambda *given, **options: 1 / 0)
        assert [code_of(await events) for events in under_way] == ["engine_lost"] * 2
        assert host.is_lost
        assert code_of(await events_of(host.generate(assign("s", CAT)))) == "engine_lost"


async def test_a_device_that_is_found_lost_when_a_run_is_taken_in_is_not_the_runs_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with hosting(lambda folder: FakeModel()) as host:
        monkeypatch.setattr("safelight.engine.faults.is_lost", lambda device: True)
        monkeypatch.setattr(host._engine, "submit", lambda assignment: 1 / 0)
        assert code_of(await events_of(host.generate(assign("r", CAT)))) == "engine_lost"
        assert host.is_lost


async def test_a_command_that_fails_ends_the_engine_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosting(lambda folder: FakeModel(step_seconds=0.005)) as host:
        waiting = asyncio.create_task(events_of(host.generate(assign("r", LONG))))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(host._engine, "watch", lambda run_id: 1 / 0)
        host.watch("r")
        assert code_of(await waiting) == "engine_lost"


async def test_an_unknown_model_is_answered() -> None:
    async with hosting(lambda folder: FakeModel()) as host:
        events = await events_of(host.generate(assign("r", CAT, model_key="none@1")))
        assert code_of(events) == "model_not_loaded"
