"""Models that come and go on one device, drawn by a real engine thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from safelight.catalog import PINHOLE_FOLDER
from safelight.config import EngineSettings
from safelight.deployments import DeploymentStatus
from safelight.engine.events import AssignmentDone, EngineEvent
from safelight.engine.host import EngineHost
from safelight.engine.models.base import ImageModel
from safelight.engine.residents import ModelState
from safelight.engine.tasks import ModelSpec
from safelight.errors import ModelError
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign, code_of, pictures_of

MB = 10**6
CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=3, guidance_scale=1.0)


@dataclass(slots=True)
class Clock:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass(slots=True)
class Told:
    """What became of each model, in order."""

    states: list[ModelState] = field(default_factory=list)

    async def __call__(self, state: ModelState) -> None:
        self.states.append(state)

    def of(self, key: str) -> list[str]:
        return [state.status.value for state in self.states if state.key == key]


@asynccontextmanager
async def hosting(
    load: Callable[[Path], ImageModel] = lambda folder: FakeModel(num_bytes=4 * MB),
    *,
    budget_mb: int = 10,
    now: Callable[[], float] | None = None,
    estimate: Callable[[Path], int] | None = None,
) -> AsyncIterator[tuple[EngineHost, Told]]:
    """An engine with room for two models of the usual size."""
    clock = {} if now is None else {"now": now}
    host = EngineHost(
        EngineSettings(model_memory_mb=budget_mb), load=load, estimate=estimate or (lambda _: 4 * MB), **clock
    )
    told = Told()
    host.watch_models(told)
    await host.start()
    try:
        async with asyncio.timeout(20):
            yield host, told
    finally:
        await host.close()


def spec(name: str, **kept: float) -> ModelSpec:
    return ModelSpec(f"{name}@1", Path(name), **kept)  # type: ignore[arg-type]


async def draw(host: EngineHost, name: str, run_id: str = "r", params: RunParams = CAT) -> list[EngineEvent]:
    async with host.models.hold(spec(name)):
        return [event async for event in host.generate(assign(run_id, params, model_key=f"{name}@1"))]


async def test_the_model_used_least_recently_gives_way_and_comes_back_on_its_next_run() -> None:
    async with hosting() as (host, told):
        for name in ("a", "b", "a", "c", "b"):
            assert isinstance((await draw(host, name))[-1], AssignmentDone)
    assert told.of("b@1") == ["starting", "active", "cold", "starting", "active"]
    assert told.of("a@1") == ["starting", "active", "cold"], "its last use was before that of c"
    assert told.of("c@1") == ["starting", "active"]


async def test_a_model_kept_in_host_memory_comes_back_without_being_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(folder: Path) -> ImageModel:
        loads.append(folder.name)
        return FakeModel(num_bytes=4 * MB)

    monkeypatch.setattr("safelight.engine.host.host_bytes", lambda settings, device: 5 * MB)
    async with hosting(load, budget_mb=5) as (host, told):
        for name in ("a", "b", "a", "b"):
            assert isinstance((await draw(host, name))[-1], AssignmentDone)
        assert loads == ["a", "b"]
        await draw(host, "c")
        assert host.models.keys == {"b@1", "c@1"}, "host memory has room for one"
    [kept, *_] = [state.reason for state in told.states if state.key == "a@1" and state.reason]
    assert kept == "kept in host memory"


async def test_a_model_that_was_dropped_is_out_of_memory() -> None:
    made: list[weakref.ref[FakeModel]] = []

    def load(folder: Path) -> ImageModel:
        model = FakeModel(num_bytes=4 * MB)
        made.append(weakref.ref(model))
        return model

    async with hosting(load, budget_mb=5) as (host, _):
        await draw(host, "a")
        await draw(host, "b")
        gc.collect()
        assert made[0]() is None and made[1]() is not None


async def test_a_model_with_a_run_under_way_is_never_moved_and_its_next_runs_wait_their_turn() -> None:
    clock = Clock()
    order: list[str] = []

    async def noted(host: EngineHost, name: str, run_id: str, num_steps: int) -> None:
        events = await draw(host, name, run_id, replace(CAT, num_inference_steps=num_steps))
        assert isinstance(events[-1], AssignmentDone)
        order.append(run_id)

    slow = FakeModel(num_bytes=4 * MB, step_seconds=0.005)
    async with hosting(lambda folder: slow, budget_mb=5, now=clock) as (host, told):
        runs = []
        for name, run_id, num_steps in (("a", "long a", 40), ("b", "b", 3), ("a", "late a", 3)):
            runs.append(asyncio.create_task(noted(host, name, run_id, num_steps)))
            await asyncio.sleep(0.05)
        assert told.of("b@1") == ["starting"], "it waits for the run of a"
        await asyncio.gather(*runs)
    assert order == ["long a", "b", "late a"]


async def test_runs_of_many_models_in_room_for_one_all_come_to_their_end() -> None:
    async with hosting(budget_mb=5) as (host, _):
        runs = (draw(host, name, f"{name}{number}") for number in range(3) for name in "abc")
        told = await asyncio.gather(*runs)
    assert all(isinstance(events[-1], AssignmentDone) for events in told)


async def test_a_pinned_model_is_not_moved_and_who_needs_its_room_is_told() -> None:
    async with hosting(budget_mb=5) as (host, told):
        async with host.models.hold(spec("a", is_pinned=True)):
            pass
        with pytest.raises(ModelError, match="pinned deployments hold 4 MB"):
            await draw(host, "b")
        assert host.models.is_loaded("a@1")
    assert told.states[-1].status is DeploymentStatus.FAILED and "pinned" in told.states[-1].reason


async def test_an_idle_model_is_unloaded_after_its_cooldown() -> None:
    clock = Clock()
    async with hosting(now=clock) as (host, told):
        async with host.models.hold(spec("a", cooldown_seconds=60)):
            clock.at = 50
            await host.models.tidy()
        clock.at = 109
        await host.models.tidy()
        assert host.models.is_loaded("a@1")
        clock.at = 110
        await host.models.tidy()
        assert not host.models.is_loaded("a@1") and not host.models.keys
    assert told.of("a@1") == ["starting", "active", "cold"]


async def test_a_model_that_cannot_be_loaded_is_tried_again_with_patience_not_once_per_run() -> None:
    clock, tries = Clock(), 0

    def load(folder: Path) -> ImageModel:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ModelError("unet/model.safetensors is damaged; download it again")
        return FakeModel()

    async with hosting(load, now=clock) as (host, told):
        for _ in range(5):
            with pytest.raises(ModelError, match=r"is damaged; download it again"):
                await draw(host, "a")
        assert tries == 1
        clock.at = 5
        with pytest.raises(ModelError):
            await draw(host, "a")
        clock.at = 14
        with pytest.raises(ModelError, match="tried again in 1 s"):
            await draw(host, "a")
        clock.at = 15
        assert isinstance((await draw(host, "a"))[-1], AssignmentDone)
    assert told.of("a@1") == ["starting", "failed", "starting", "failed", "starting", "active"]


async def test_one_load_serves_all_who_wait_for_it_and_outlives_who_gives_up() -> None:
    release, loads = threading.Event(), []

    def load(folder: Path) -> ImageModel:
        loads.append(folder.name)
        assert release.wait(10)
        return FakeModel()

    async with hosting(load) as (host, _):
        waiting = [asyncio.create_task(draw(host, "a", f"r{number}")) for number in range(3)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()
        release.set()
        told = await asyncio.gather(*waiting[1:])
        assert all(isinstance(events[-1], AssignmentDone) for events in told) and loads == ["a"]


async def test_running_out_of_memory_while_loading_names_the_setting() -> None:
    def load(folder: Path) -> ImageModel:
        raise MemoryError

    async with hosting(load) as (host, _):
        with pytest.raises(ModelError, match=r"no memory for the model .* engine\.model_memory_mb"):
            await draw(host, "a")


async def test_a_model_that_finds_no_memory_comes_once_the_others_have_released_theirs() -> None:
    class Hoarder(FakeModel):
        has_hoard = False

        def release(self) -> bool:
            had, self.has_hoard = self.has_hoard, False
            return had

    first = Hoarder(num_bytes=4 * MB)

    def load(folder: Path) -> ImageModel:
        if folder.name == "a":
            return first
        if first.has_hoard:
            raise torch.OutOfMemoryError
        return FakeModel(num_bytes=4 * MB)

    async with hosting(load) as (host, _):
        await draw(host, "a")
        first.has_hoard = True
        assert isinstance((await draw(host, "b"))[-1], AssignmentDone)
        assert host.models.is_loaded("a@1")


async def test_a_run_whose_model_was_never_held_is_answered() -> None:
    async with hosting() as (host, _):
        events = [event async for event in host.generate(assign("r", CAT, model_key="none@1"))]
        assert code_of(events) == "model_not_loaded"


async def test_pinhole_under_two_names_takes_turns_in_room_for_one_and_draws_the_same() -> None:
    params = replace(CAT, num_inference_steps=2, guidance_scale=7.5)
    host = EngineHost(EngineSettings(model_memory_mb=100, dtype="float32", num_threads=1, backend="torch"))
    told = Told()
    host.watch_models(told)
    await host.start()
    try:
        drawn = []
        for name in ("one", "two", "one"):
            async with host.models.hold(ModelSpec(f"{name}@1", PINHOLE_FOLDER)):
                events = [each async for each in host.generate(assign("r", params, model_key=f"{name}@1"))]
            drawn.append(pictures_of(events)[0])
    finally:
        await host.close()
    assert told.of("one@1") == ["starting", "active", "cold", "starting", "active"]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] == drawn[2]).all()
    assert all(state.load_seconds for state in told.states if state.status is DeploymentStatus.ACTIVE)
