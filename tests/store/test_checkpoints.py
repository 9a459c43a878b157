"""What unfinished runs go on from, as files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from safelight.store.checkpoints import CheckpointFolder

from .making import SUCCEEDED, Place, claim_one, submit

RUN, OTHER = "0a1b2c", "0a1b2c-3"


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def names(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "checkpoints").iterdir())


async def test_the_newest_of_the_highest_fence_is_read(folder: CheckpointFolder, tmp_path: Path) -> None:
    assert await folder.newest(RUN) is None
    for fence, data in ((2, b"early"), (2, b"later"), (10, b"new claim")):
        await folder.write(RUN, fence, data)
        assert await folder.newest(RUN) == data
    assert names(tmp_path) == [f"{RUN}.10"], "what it replaces is gone"


async def test_a_late_worker_neither_removes_nor_hides_the_newer_one(folder: CheckpointFolder) -> None:
    await folder.write(RUN, 3, b"holder")
    await folder.write(RUN, 2, b"late")
    assert await folder.newest(RUN) == b"holder"


async def test_a_torn_file_is_passed_over(folder: CheckpointFolder, tmp_path: Path) -> None:
    await folder.write(RUN, 2, b"newer")
    file = tmp_path / "checkpoints" / f"{RUN}.2"
    file.write_bytes(file.read_bytes()[:-1])
    assert await folder.newest(RUN) is None
    await folder.write(RUN, 1, b"whole")
    assert await folder.newest(RUN) == b"whole"


async def test_a_file_that_cannot_be_read_is_passed_over(folder: CheckpointFolder, tmp_path: Path) -> None:
    await folder.write(RUN, 1, b"whole")
    (tmp_path / "checkpoints" / f"{RUN}.2").mkdir()
    assert await folder.newest(RUN) == b"whole"


async def test_removing_leaves_runs_of_a_longer_name(folder: CheckpointFolder, tmp_path: Path) -> None:
    await folder.write(RUN, 1, b"")
    await folder.write(OTHER, 1, b"")
    await folder.remove(RUN)
    await folder.remove(RUN)
    assert names(tmp_path) == [f"{OTHER}.1"]


async def test_the_sweep_takes_what_no_unfinished_run_needs(place: Place) -> None:
    async with await place.open() as store:
        runs = [await submit(store) for _ in range(3)]
        ended = await claim_one(store)
        await claim_one(store)
        await store.runs.finish(ended, SUCCEEDED)
        for run_id in (*(run.id for run in runs), "gone-0001", "new-00001"):
            await store.checkpoints.write(run_id, 1, b"")
        left = place.data / "checkpoints" / "torn.0a1b.tmp"
        left.write_bytes(b"")
        for file in left.parent.glob("[!n]*.*"):
            os.utime(file, (time.time() - 3600,) * 2)
        assert await store.sweep_checkpoints() == 3
        kept = {file.name for file in left.parent.iterdir()}
        assert kept == {f"{run.id}.1" for run in runs[1:]} | {"new-00001.1"}
