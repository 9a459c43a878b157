"""A worker whose lease ran out claims the run again itself, while it still draws it for the claim before."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from safelight.deployments import Serving
from safelight.runs import RunEventKind, RunParams, RunStatus
from safelight.store import Store
from safelight.store.schema import runs
from safelight.testing import FakeModel
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
