"""The janitor beside the processes that serve."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

import pytest

from safelight.config import StoreSettings, WorkerSettings
from safelight.janitor import Janitor
from safelight.store import Store


async def end(tidying: asyncio.Task[None]) -> None:
    tidying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tidying


async def test_a_disk_in_trouble_ends_neither_the_janitor_nor_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = asyncio.Event()

    async def sweep(**options: object) -> int:
        if "could not tidy up" in caplog.text:
            rounds.set()
        raise OSError(errno.EROFS, "Read-only file system")

    async with await Store.open(tmp_path) as store:
        monkeypatch.setattr(store, "sweep_checkpoints", sweep)
        janitor = Janitor(store, StoreSettings(prune_interval_seconds=0.01), WorkerSettings())
        tidying = asyncio.create_task(janitor.run_beside_worker())
        await asyncio.wait({tidying, asyncio.create_task(rounds.wait())}, timeout=10, return_when="FIRST_COMPLETED")
        assert rounds.is_set() and not tidying.done()
        await end(tidying)
    assert "Read-only file system" in caplog.text


async def test_a_machine_without_a_door_sweeps_what_dead_workers_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_round_over = asyncio.Event()
    monkeypatch.setattr("safelight.janitor.give_memory_back", is_round_over.set)
    async with await Store.open(tmp_path) as store:
        await store.previews.write("run", b"picture")
        os.utime(tmp_path / "previews" / "run.png", (1.0, 1.0))
        tidying = asyncio.create_task(Janitor(store, StoreSettings(), WorkerSettings()).run_beside_worker())
        async with asyncio.timeout(10):
            await is_round_over.wait()
        assert await store.previews.read("run") is None
        await end(tidying)


@pytest.mark.parametrize("round_of", ["run", "run_beside_worker"])
async def test_each_round_gives_back_what_a_process_only_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_of: str
) -> None:
    given_back = asyncio.Event()
    monkeypatch.setattr("safelight.janitor.give_memory_back", given_back.set)
    async with await Store.open(tmp_path) as store:
        tidying = asyncio.create_task(getattr(Janitor(store, StoreSettings(), WorkerSettings()), round_of)())
        async with asyncio.timeout(10):
            await given_back.wait()
        await end(tidying)
