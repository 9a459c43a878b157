"""What a worker draws while a model is compiled, and what waits."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from safelight.deployments import Deployment, Serving
from safelight.engine.models.base import ImageModel
from safelight.runs import RunStatus
from safelight.store import Store
from safelight.testing import FakeModel
from tests.store.making import claim_one

from .test_models import CAT, ended, submit, working


async def test_a_first_run_does_not_wait_for_the_compiler_but_a_deterministic_one_does(tmp_path: Path) -> None:
    may_end, compiled = threading.Event(), FakeModel()

    def compile(model: ImageModel) -> ImageModel:
        assert may_end.wait(20)
        return compiled

    async with working(tmp_path, lambda _: FakeModel(), compile=compile, a=Serving()) as store:
        exact = await submit(store, "a", replace(CAT, deterministic=True))
        assert (await ended(store, await submit(store, "a"))).status is RunStatus.SUCCEEDED
        assert (await store.runs.get(exact)).status is RunStatus.RUNNING
        may_end.set()
        assert (await ended(store, exact)).status is RunStatus.SUCCEEDED
    assert compiled.calls["decode"] == 1


async def test_a_run_that_an_earlier_claim_began_waits_for_the_compiler(tmp_path: Path) -> None:
    may_end, compiled = threading.Event(), FakeModel()

    def compile(model: ImageModel) -> ImageModel:
        assert may_end.wait(20)
        return compiled

    async with await Store.open(tmp_path / "data") as store:
        await store.deployments.deploy(Deployment(name="a", version=0, model="a", serving=Serving()))
        begun = await submit(store, "a")
        await claim_one(store, "gone")
        await store.runs.requeue_lost(max_attempts=3, worker_id="gone")
    async with working(tmp_path, lambda _: FakeModel(), compile=compile, a=Serving()) as store:
        assert (await ended(store, await submit(store, "a"))).status is RunStatus.SUCCEEDED
        assert (await store.runs.get(begun)).status is RunStatus.RUNNING
        may_end.set()
        assert (await ended(store, begun)).num_attempts == 2
    assert compiled.calls["decode"] == 1
