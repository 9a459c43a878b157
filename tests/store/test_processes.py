"""Several processes over one data folder, and processes that die."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from safelight.runs import RunStatus
from safelight.store import Store

from .making import HOOK, SUCCEEDED, Place, claim_one, draw, finish, kinds_of, new_run, submit

Work = Callable[..., Awaitable[None]]

# Forked from here they start in milliseconds; no store is open in this process at that moment.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start a process that opens the store in a folder and does something with it."""
    started: list[BaseProcess] = []

    def start(work: Work, place: Place, *given: Any) -> BaseProcess:
        process = FORK.Process(target=_work, args=(work, place, *given), daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def _work(work: Work, place: Place, *given: Any) -> None:
    async def open_and_work() -> None:
        async with await place.open() as store:
            await work(store, *given)

    asyncio.run(open_and_work())


def in_store(place: Place, work: Work, *given: Any) -> None:
    _work(work, place, *given)


def joined(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


async def submit_some(store: Store, count: int) -> None:
    await asyncio.gather(*(submit(store, webhook_endpoint=HOOK) for _ in range(count)))


async def drain(store: Store, worker_id: str) -> None:
    while claimed := await store.runs.claim(worker_id, limit=3, lease_seconds=60):
        await asyncio.gather(*(store.runs.finish(claim, SUCCEEDED) for claim in claimed))


def test_workers_in_several_processes_claim_each_run_once(place: Place, start: Callable[..., BaseProcess]) -> None:
    in_store(place, submit_some, 60)
    joined([start(drain, place, f"worker-{number}") for number in range(3)])

    async def check(store: Store) -> None:
        runs, _ = await store.runs.list(limit=100)
        assert len(runs) == 60
        assert {(run.status, run.fence) for run in runs} == {(RunStatus.SUCCEEDED, 1)}
        assert len({delivery.run_id for delivery in await store.deliveries.list(limit=100)}) == 60
        for run in runs[:5]:
            assert await kinds_of(store, run.id) == ["queued", "started", "succeeded"]

    in_store(place, check)


async def submit_with_keys(store: Store, count: int) -> None:
    asked = [new_run(idempotency_key=f"key-{number}", body_digest="d") for number in range(count)]
    await asyncio.gather(*(store.runs.create(new, max_queued=1000) for new in asked))


def test_one_idempotency_key_makes_one_run_across_processes(place: Place, start: Callable[..., BaseProcess]) -> None:
    joined([start(submit_with_keys, place, 15) for _ in range(4)])

    async def check(store: Store) -> None:
        assert (await store.runs.backlog()).num_queued == 15

    in_store(place, check)


def test_processes_that_start_at_once_find_one_migrated_store(
    tmp_path: Path, empty_place: Place, start: Callable[..., BaseProcess]
) -> None:
    async def make_a_key(store: Store, name: str) -> None:
        _, secret = await store.keys.create(name, scopes=frozenset({"predict"}))  # type: ignore[arg-type]
        (tmp_path / name).write_text(secret)

    joined([start(make_a_key, empty_place, f"key-{number}") for number in range(4)])

    async def check(store: Store) -> None:
        for number in range(4):
            name = f"key-{number}"
            assert (await store.keys.authenticate((tmp_path / name).read_text())).name == name

    in_store(empty_place, check)


async def claim_and_hang(store: Store, started: Any) -> None:
    claim = await claim_one(store, lease_seconds=0.1)
    await draw(store, claim, index=0)
    started.set()
    await asyncio.sleep(60)


def test_a_killed_worker_loses_nothing_and_another_goes_on(place: Place, start: Callable[..., BaseProcess]) -> None:
    in_store(place, submit_some, 1)
    started = FORK.Event()
    worker = start(claim_and_hang, place, started)
    assert started.wait(20)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL

    async def go_on(store: Store) -> None:
        await asyncio.sleep(0.2)
        [lost] = await store.runs.requeue_lost(max_attempts=3)
        assert lost.status is RunStatus.QUEUED
        claim = await claim_one(store)
        assert claim.fence == 2
        assert [await store.images.read(image.path) for image in claim.run.images] == [b"picture"]
        ended = await finish(store, claim, SUCCEEDED)
        assert await kinds_of(store, ended.id) == ["queued", "started", "image", "requeued", "started", "succeeded"]
        assert len(await store.deliveries.list()) == 1

    in_store(place, go_on)


async def submit_for_ever(store: Store, tell: int) -> None:
    async def lane() -> None:
        while True:
            run = await submit(store, webhook_endpoint=HOOK)
            os.write(tell, run.id.encode())
            for claim in await store.runs.claim("doomed", limit=2, lease_seconds=0.0):
                await store.runs.finish(claim, SUCCEEDED)

    await asyncio.gather(*(lane() for _ in range(4)))


def test_what_was_accepted_before_a_kill_is_there_after_it(place: Place, start: Callable[..., BaseProcess]) -> None:
    told, tell = os.pipe()
    accepted = b""
    for number in range(6):
        doomed = start(submit_for_ever, place, tell)
        accepted += os.read(told, 36)
        time.sleep(0.02 * number)
        doomed.kill()
        doomed.join()
        assert doomed.exitcode == -signal.SIGKILL
    os.close(tell)
    while more := os.read(told, 65536):
        accepted += more
    ids = {accepted[first : first + 36].decode() for first in range(0, len(accepted), 36)}

    async def check(store: Store) -> None:
        runs, _ = await store.runs.list(limit=10_000)
        told_of = {delivery.run_id for delivery in await store.deliveries.list(limit=10_000)}
        assert len(ids) >= 6 and ids <= {run.id for run in runs}
        for run in runs:
            kinds = await kinds_of(store, run.id)
            assert run.status.has_ended == (kinds[-1] == "succeeded") == (run.id in told_of)

    in_store(place, check)


async def hint(store: Store) -> None:
    store.notifications.publish("queue")


def test_a_hint_reaches_another_process(place: Place, start: Callable[..., BaseProcess]) -> None:
    async def listen(store: Store) -> None:
        with store.notifications.listen("queue") as listener:
            start(hint, place)
            assert await listener.wait(20.0)

    in_store(place, listen)


async def write_for_ever(store: Store, started: Any) -> None:
    async def lane() -> None:
        while True:
            await end_one_of(store)

    started.set()
    await asyncio.gather(*(lane() for _ in range(8)))


async def end_one_of(store: Store) -> None:
    await submit(store)
    for claim in await store.runs.claim("busy", limit=1, lease_seconds=60):
        await store.runs.finish(claim, SUCCEEDED)


def test_a_process_that_writes_without_pause_starves_no_other(place: Place, start: Callable[..., BaseProcess]) -> None:
    started = FORK.Event()
    start(write_for_ever, place, started)
    assert started.wait(20)

    async def measure(store: Store) -> None:
        for _ in range(10):
            run = await submit(store, project="quiet")
            await asyncio.wait_for(store.runs.get(run.id), 5)

    begun = time.monotonic()
    in_store(place, measure)
    assert time.monotonic() - begun < 15
