"""What a worker that is full claims, and what counts for its being full."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import safelight.worker.drawing
from safelight.deployments import Serving
from safelight.keys import Allowance, Scope
from safelight.runs import Run, RunParams, RunStatus
from safelight.store import Store
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


async def test_a_run_that_still_waits_for_its_picture_takes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = asyncio.Event()

    async def slow(store: Store, run: Run) -> None:
        await is_there.wait()

    monkeypatch.setattr(safelight.worker.drawing, "start_picture", slow)
    async with working(tmp_path, lambda _: FakeModel(), max_resident_images=1, a=Serving()) as store:
        runs = [(await store.runs.create(new_run(deployment="a", params=CAT), max_queued=9))[0] for _ in range(3)]

        async def is_claimed() -> bool:
            return (await store.runs.backlog()).num_running > 0

        await until(is_claimed)
        await asyncio.sleep(0.2)
        assert (await store.runs.backlog()).num_running == 1
        is_there.set()
        assert {(await ended(store, run.id)).status for run in runs} == {RunStatus.SUCCEEDED}
