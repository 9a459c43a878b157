"""A run of a key of higher priority passes what a full worker holds."""

from __future__ import annotations

from pathlib import Path

from safelight.deployments import Serving
from safelight.keys import Allowance, Scope
from safelight.runs import RunParams, RunStatus
from safelight.testing import FakeModel
from tests.lifecycle.test_models import CAT, ended, until, working
from tests.store.making import new_run

LONG = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=150, guidance_scale=1.0)


async def test_an_urgent_run_does_not_wait_for_room_and_a_usual_one_does(tmp_path: Path) -> None:
    model = FakeModel(step_seconds=0.02)
    async with working(tmp_path, lambda _: model, max_resident_images=1, a=Serving()) as store:
        allowance = Allowance(priority=1)
        key, _ = await store.keys.create("urgent", scopes=frozenset({Scope.PREDICT}), allowance=allowance)
        long, _ = await store.runs.create(new_run(deployment="a", params=LONG), max_queued=9)

        async def is_begun() -> bool:
            return (await store.runs.get(long.id)).steps_done > 0

        await until(is_begun)
        usual, _ = await store.runs.create(new_run(deployment="a", params=CAT), max_queued=9)
        urgent, _ = await store.runs.create(new_run(deployment="a", params=CAT, key_id=key.id), max_queued=9)
        assert (await ended(store, urgent.id)).status is RunStatus.SUCCEEDED
        assert (await store.runs.get(long.id)).status is RunStatus.RUNNING
        assert (await store.runs.get(usual.id)).status is RunStatus.QUEUED
        await store.runs.cancel(long.id)
        assert (await ended(store, usual.id)).status is RunStatus.SUCCEEDED
