"""From whoever follows a run to its worker and back: a real store, worker and service, and FakeModel."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from safelight.api import Service
from safelight.config import EngineSettings, ServerSettings, WorkerSettings
from safelight.deployments import Deployment
from safelight.engine.host import EngineHost
from safelight.errors import NotFound
from safelight.runs import Run, RunEventKind, RunParams
from safelight.store import Store
from safelight.testing import FakeModel
from safelight.worker import Worker
from tests.store.making import submit

PARAMS = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=60, guidance_scale=1.0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(tmp_path / "data") as opened:
        await opened.deployments.deploy(Deployment(name="fake", version=0, model="fake"))
        yield opened


@pytest.fixture
async def run(store: Store, tmp_path: Path) -> AsyncIterator[Run]:
    """A run of three seconds that a worker draws."""
    engine = EngineHost(EngineSettings(), load=lambda folder: FakeModel(step_seconds=0.05))
    worker = Worker(store, engine, WorkerSettings(), worker_id="w", find_weights=lambda model: tmp_path)
    working = asyncio.create_task(worker.run())
    yield await submit(store, deployment="fake", params=PARAMS)
    worker.stop()
    await working
    await engine.close()


@pytest.fixture
def service(store: Store) -> Service:
    return Service(store, ServerSettings(), check_webhook=lambda url: None)


async def test_who_follows_a_run_is_shown_previews_and_they_go_with_it(
    store: Store, run: Run, service: Service
) -> None:
    seen: list[RunEventKind] = []
    async for event in service.follow(run):
        seen += [event.kind] if event else []
        if event is not None and event.kind is RunEventKind.PREVIEW:
            with Image.open(io.BytesIO(await service.preview(await store.runs.get(run.id)))) as picture:
                assert (picture.format, picture.size) == ("PNG", (8, 8))
    assert 1 <= seen.count(RunEventKind.PREVIEW) <= 4, "one a second"
    assert seen[-1] is RunEventKind.SUCCEEDED
    with pytest.raises(NotFound, match="has ended"):
        await service.preview(await store.runs.get(run.id))
    assert await store.previews.read(run.id) is None


async def test_a_run_that_nobody_watches_leaves_no_preview(store: Store, run: Run, service: Service) -> None:
    while not (now := await store.runs.get(run.id)).status.has_ended:
        assert await store.previews.version(run.id) is None
        await asyncio.sleep(0.1)
    assert now.images
