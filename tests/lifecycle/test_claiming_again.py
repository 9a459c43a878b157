"""A worker whose lease ran out claims the run again itself, while it still draws it for the claim before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from safelight.config import EngineSettings, WorkerSettings
from safelight.deployments import Deployment, Serving
from safelight.engine.host import EngineHost
from safelight.runs import RunEventKind, RunParams, RunStatus
from safelight.store import Store
from safelight.store.schema import runs
from safelight.testing import FakeModel
from safelight.worker import EngineHung, Worker
from tests.lifecycle.test_models import ended, until, working
from tests.store.making import new_run

LONG = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=30, guidance_scale=1.0)
NUM_LOST = 3


async def lose_leases(store: Store) -> None:
    """As after a pause of the process for longer than a lease."""
    await store._database.write(lambda connection: connection.execute(sa.update(runs).values(lease_ends_at=0.0)))
    assert await store.runs.requeue_lost(max_attempts=9)


async def test_a_run_that_its_own_worker_claims_back_is_drawn_to_its_end(tmp_path: Path) -> None:
    async with working(tmp_path, lambda _: FakeModel(step_seconds=0.01), a=Serving()) as store:
        run, _ = await store.runs.create(new_run(deployment="a", params=LONG), max_queued=100)
        for fence in range(1, NUM_LOST + 1):

            async def is_being_drawn(fence: int = fence) -> bool:
                run_now = await store.runs.get(run.id)
                return run_now.fence == fence and run_now.steps_done > 0

            await until(is_being_drawn)
            await lose_leases(store)
        run = await ended(store, run.id)
        kinds = [event.kind for event in await store.events.after(run.id)]
    assert run.status is RunStatus.SUCCEEDED
    assert kinds.count(RunEventKind.REQUEUED) == NUM_LOST


async def test_a_worker_whose_engine_is_lost_costs_no_run_that_waits_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Store.open(tmp_path) as store:
        await store.deployments.deploy(Deployment(name="a", version=0, model="a"))
        waiting = [(await store.runs.create(new_run(deployment="a"), max_queued=100))[0].id for _ in range(5)]
        engine = EngineHost(EngineSettings(), load=lambda _: FakeModel())
        settings = WorkerSettings(poll_seconds=0.01, progress_seconds=0.3)
        monkeypatch.setattr(EngineHost, "is_lost", property(lambda host: True))
        with pytest.raises(EngineHung):
            await Worker(store, engine, settings, worker_id="w", find_weights=Path).run()
        assert [(await store.runs.get(run_id)).num_attempts for run_id in waiting] == [0] * 5
        await engine.close()


async def test_a_worker_that_stops_waits_for_no_engine_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Store.open(tmp_path) as store:
        await store.deployments.deploy(Deployment(name="a", version=0, model="a"))
        run, _ = await store.runs.create(new_run(deployment="a", params=LONG), max_queued=100)
        engine = EngineHost(EngineSettings(), load=lambda _: FakeModel(step_seconds=0.5))
        settings = WorkerSettings(poll_seconds=0.01, progress_seconds=0.05, drain_seconds=600)
        worker = Worker(store, engine, settings, worker_id="w", find_weights=Path)
        working = asyncio.create_task(worker.run())

        async def is_being_drawn() -> bool:
            return (await store.runs.get(run.id)).steps_done > 0

        await until(is_being_drawn)
        worker.stop()
        await asyncio.sleep(0.1)
        monkeypatch.setattr(EngineHost, "is_lost", property(lambda host: True))
        with pytest.raises(EngineHung):
            await asyncio.wait_for(working, 10)
        await engine.close()
