"""A worker process dies, hangs or is stopped in the middle of a run; the next one goes on with it."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.app import HUNG_EXIT_STATUS
from safelight.config import Settings, WorkerSettings, dump_settings
from safelight.deployments import Deployment
from safelight.runs import Run, RunParams, RunStatus
from safelight.store import Store
from tests.store.making import new_run

NUM_STEPS = 60
CHECKPOINT_SECONDS = 0.4
CHECKPOINT_STEPS = 8
"""What the child draws in that time, at 0.05 s a step, and less where the machine is busy."""

PARAMS = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=NUM_STEPS, guidance_scale=3.0)

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def store(data: Path) -> AsyncIterator[Store]:
    async with await Store.open(data) as opened:
        await opened.deployments.deploy(Deployment(name="fake", version=0, model="fake"))
        yield opened


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Start]:
    """Start worker processes, killed when the test ends."""
    (tmp_path / "model_index.json").touch()
    with ExitStack() as stack:

        def start_one(**worker: float) -> subprocess.Popen[str]:
            usual = {"checkpoint_seconds": CHECKPOINT_SECONDS, "poll_seconds": 0.1, "progress_seconds": 0.1}
            settings = Settings(data=data, models={"fake": tmp_path}, worker=WorkerSettings(**(usual | worker)))  # type: ignore[arg-type]
            command = [sys.executable, "-m", "tests.lifecycle.fake_worker", str(tmp_path)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdin is not None
            process.stdin.write(dump_settings(settings) + "\n")
            process.stdin.flush()
            return process

        yield start_one


async def submit(store: Store, params: RunParams = PARAMS) -> Run:
    run, _ = await store.runs.create(new_run(deployment="fake", deployment_version=1, params=params), max_queued=10)
    return run


async def reach(store: Store, run_id: str, num_steps: int) -> Run:
    """Wait until so many steps are reported; all of them: until it has ended."""
    async with asyncio.timeout(90):
        while True:
            run = await store.runs.get(run_id)
            if run.status.has_ended or (num_steps < run.params.num_inference_steps and run.steps_done >= num_steps):
                return run
            await asyncio.sleep(0.02)


async def pixels(store: Store, run: Run) -> np.ndarray:
    assert run.status is RunStatus.SUCCEEDED, run.error
    return np.asarray(Image.open(io.BytesIO(await store.images.read(run.images[0].path))))


def steps_drawn(folder: Path) -> list[str]:
    return (folder / "steps").read_text().split()


async def test_a_run_killed_at_four_fifths_repeats_no_more_than_a_checkpoint_interval(
    store: Store, start: Start, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run = await submit(store)
    first = start()
    await reach(store, run.id, NUM_STEPS * 4 // 5)
    first.kill()
    first.wait()
    num_before = len(steps_drawn(tmp_path))
    second = start()
    ended = await reach(store, run.id, NUM_STEPS)

    repeated = len(steps_drawn(tmp_path)) - NUM_STEPS
    for name, value in (("repeated", repeated), ("steps", NUM_STEPS), ("allowed", CHECKPOINT_STEPS + 1)):
        record_property(name, value)
    assert 0 <= repeated <= CHECKPOINT_STEPS + 1, (repeated, num_before)
    undisturbed = await reach(store, (await submit(store)).id, NUM_STEPS)
    assert np.array_equal(await pixels(store, ended), await pixels(store, undisturbed))
    assert await store.checkpoints.newest(run.id) is None, "an ended run keeps no checkpoint"
    second.terminate()
    assert second.wait(20) == 0


async def test_a_stopped_worker_saves_what_it_gives_back_and_not_a_step_is_repeated(
    store: Store, start: Start, tmp_path: Path
) -> None:
    run = await submit(store)
    first = start(drain_seconds=0.1, checkpoint_seconds=60)
    await reach(store, run.id, NUM_STEPS // 2)
    first.terminate()
    assert first.wait(20) == 0
    given_back = await store.runs.get(run.id)
    assert (given_back.status, given_back.num_attempts) == (RunStatus.QUEUED, 0)

    start()
    ended = await reach(store, run.id, NUM_STEPS)
    assert len(steps_drawn(tmp_path)) - NUM_STEPS <= 2, "the step under way, and the one after"
    undisturbed = await reach(store, (await submit(store)).id, NUM_STEPS)
    assert np.array_equal(await pixels(store, ended), await pixels(store, undisturbed))


@pytest.mark.parametrize(("prompt", "stall_seconds"), [("hang", 1), ("lose", 300)])
async def test_an_engine_that_hangs_or_loses_its_device_ends_its_process_and_the_run_is_finished_elsewhere(
    store: Store, start: Start, prompt: str, stall_seconds: float
) -> None:
    run = await submit(store, replace(PARAMS, prompt=prompt, num_inference_steps=4))
    failing = start(stall_seconds=stall_seconds, heartbeat_seconds=0.2, lease_seconds=30)
    assert await asyncio.to_thread(failing.wait, 60) == HUNG_EXIT_STATUS
    held = await store.runs.get(run.id)
    assert held.status is RunStatus.RUNNING, "such a worker gives nothing back: it may be the run's doing"

    start()
    ended = await reach(store, run.id, 4)
    assert (ended.status, ended.num_attempts) == (RunStatus.SUCCEEDED, 2)
