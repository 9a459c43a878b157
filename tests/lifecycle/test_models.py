"""A worker and the models of its deployments: states in the store, runs that fail or wait, models that go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

import safelight.worker.models
from safelight.catalog import find_weights, hub_cache
from safelight.config import EngineSettings, WorkerSettings
from safelight.deployments import Deployment, DeploymentStatus, Serving
from safelight.engine.host import EngineHost
from safelight.engine.models.base import ImageModel
from safelight.errors import ModelError
from safelight.runs import Run, RunParams, RunStatus
from safelight.store import Store
from safelight.testing import FakeModel
from safelight.worker import Worker
from tests.store.making import new_run

CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=2, guidance_scale=1.0)


@asynccontextmanager
async def working(
    folder: Path,
    load: Callable[[Path], ImageModel],
    *,
    compile: Callable[[ImageModel], ImageModel] | None = None,
    max_resident_images: int = 16,
    find: Callable[..., Path] = Path,
    deployed: Sequence[Deployment] = (),
    **served: Serving,
) -> AsyncIterator[Store]:
    """A store with deployments, and a worker with room for one model of 4 MB."""
    async with await Store.open(folder / "data") as store:
        named = [Deployment(name=name, version=0, model=name, serving=each) for name, each in served.items()]
        for deployment in (*named, *deployed):
            await store.deployments.deploy(deployment)
        engine_settings = EngineSettings(model_memory_mb=5, max_resident_images=max_resident_images)
        engine = EngineHost(engine_settings, load=load, estimate=lambda _: 4_000_000, compile=compile)
        settings = WorkerSettings(poll_seconds=0.05, progress_seconds=0.05)
        worker = Worker(store, engine, settings, worker_id="w", find_weights=find)
        working = asyncio.create_task(worker.run())
        try:
            yield store
        finally:
            worker.stop()
            await working
            await engine.close()


async def submit(store: Store, deployment: str, params: RunParams = CAT) -> str:
    run, _ = await store.runs.create(new_run(deployment=deployment, params=params), max_queued=100)
    return run.id


async def ended(store: Store, run_id: str) -> Run:
    async with asyncio.timeout(20):
        while not (run := await store.runs.get(run_id)).status.has_ended:  # noqa: ASYNC110 - as a caller would
            await asyncio.sleep(0.02)
    return run


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await question():  # noqa: ASYNC110 - as a caller would
            await asyncio.sleep(0.02)


async def test_models_take_turns_and_the_store_knows_which_one_is_there(tmp_path: Path) -> None:
    async with working(tmp_path, lambda _: FakeModel(num_bytes=4_000_000), a=Serving(), b=Serving()) as store:
        for name in ("a", "b", "a"):
            assert (await ended(store, await submit(store, name))).status is RunStatus.SUCCEEDED
        there, gone = await store.deployments.get("a"), await store.deployments.get("b")
    assert there.status is DeploymentStatus.ACTIVE and there.load_seconds is not None
    assert gone.status is DeploymentStatus.COLD


async def test_a_model_that_cannot_be_loaded_fails_its_runs_with_the_reason_and_is_not_tried_for_each(
    tmp_path: Path,
) -> None:
    tries = []

    def load(folder: Path) -> ImageModel:
        tries.append(folder)
        raise ModelError("its unet is damaged; download the model again")

    async with working(tmp_path, load, a=Serving()) as store:
        runs = [await ended(store, await submit(store, "a")) for _ in range(3)]
        deployment = await store.deployments.get("a")
    assert all(run.error is not None and run.error.code == "model_unavailable" for run in runs)
    assert all(run.error is not None and "download the model again" in run.error.message for run in runs)
    assert len(tries) == 1
    assert deployment.status is DeploymentStatus.FAILED and "damaged" in deployment.status_reason


async def test_a_deployment_is_drawn_with_the_weights_of_its_revision_or_not_at_all(tmp_path: Path) -> None:
    here, main, gone = ("a" * 40, "b" * 40, "c" * 40)
    repository = hub_cache(tmp_path) / "models--our--model"
    for commit in (here, main):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(main)
    loaded: list[str] = []

    def load(folder: Path) -> ImageModel:
        loaded.append(folder.name)
        return FakeModel(num_bytes=4_000_000)

    revisions = {"here": here, "any": None, "gone": gone}
    deployed = [Deployment(name=each, version=0, model="our/model", revision=at) for each, at in revisions.items()]
    find = partial(find_weights, folders={}, hf_home=tmp_path)
    async with working(tmp_path, load, find=find, deployed=deployed) as store:
        ends = [await ended(store, await submit(store, name)) for name in revisions]
        lost = await store.deployments.get("gone")
    assert loaded == [here, main]
    assert [run.status for run in ends] == [RunStatus.SUCCEEDED, RunStatus.SUCCEEDED, RunStatus.FAILED]
    assert ends[-1].error is not None and f"safelight pull our/model --revision {gone}" in ends[-1].error.message
    assert lost.status is DeploymentStatus.FAILED and gone in lost.status_reason


async def test_a_run_that_waits_for_its_model_can_be_cancelled(tmp_path: Path) -> None:
    release = threading.Event()

    def load(folder: Path) -> ImageModel:
        assert release.wait(20)
        return FakeModel()

    async with working(tmp_path, load, a=Serving()) as store:
        run_id = await submit(store, "a")

        async def is_running() -> bool:
            return (await store.runs.get(run_id)).status is RunStatus.RUNNING

        await until(is_running)
        await store.runs.cancel(run_id)
        try:
            assert (await ended(store, run_id)).status is RunStatus.CANCELLED
        finally:
            release.set()


async def test_a_pinned_model_goes_when_its_deployment_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safelight.worker.models, "TIDY_SECONDS", 0.05)
    async with working(tmp_path, lambda _: FakeModel(num_bytes=4_000_000), a=Serving(pin=True), b=Serving()) as store:
        await ended(store, await submit(store, "a"))
        refused = await ended(store, await submit(store, "b"))
        assert refused.error is not None and "unpin one" in refused.error.message
        await store.deployments.undeploy("a")

        async def is_gone() -> bool:
            return (await store.deployments.get("a", 1)).status is DeploymentStatus.COLD

        await until(is_gone)
