"""Small things that most tests of the store make."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safelight.runs import Claim, ImageRecord, NewRun, Outcome, OutputFormat, Progress, Run, RunParams, RunStatus
from safelight.store import Store

SUCCEEDED = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=12.5)
on_sqlite = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
HOOK = "https://example.com/hook"


@dataclass(frozen=True)
class Place:
    """Where a store is: its folder, and its database where that is not a file in it."""

    data: Path
    url: str | None = None

    async def open(self) -> Store:
        return await Store.open(self.data, database_url=self.url)


def new_run(**given: Any) -> NewRun:
    usual: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "project": "default",
        "key_id": None,
        "deployment": "pinhole",
        "deployment_version": 1,
        "params": RunParams(prompt="a red house"),
    }
    return NewRun(**(usual | given))


async def submit(store: Store, **given: Any) -> Run:
    run, is_new = await store.runs.create(new_run(**given), max_queued=1000)
    assert is_new
    return run


async def claim_one(store: Store, worker_id: str = "worker", *, lease_seconds: float = 60.0) -> Claim:
    [claim] = await store.runs.claim(worker_id, limit=1, lease_seconds=lease_seconds)
    return claim


async def end_one(store: Store, **given: Any) -> Run:
    """A run that has succeeded."""
    await submit(store, **given)
    return await finish(store, await claim_one(store))


async def finish(store: Store, claim: Claim, outcome: Outcome = SUCCEEDED) -> Run:
    """The run as it then is."""
    await store.runs.finish(claim, outcome)
    return await store.runs.get(claim.run.id)


async def write_picture(store: Store, claim: Claim, index: int = 0, content: bytes = b"picture") -> ImageRecord:
    """Write a picture that no row names yet."""
    stored = await store.images.write(claim.run.id, index, claim.fence, OutputFormat.PNG, content)
    return ImageRecord(
        index=index,
        seed=index,
        output_format=OutputFormat.PNG,
        path=stored.path,
        num_bytes=stored.num_bytes,
        sha256=stored.sha256,
    )


def everything_in(data: Path) -> bytes:
    """All bytes of the SQLite database in a data folder."""
    return b"".join(file.read_bytes() for file in data.glob("safelight.db*"))


async def draw(store: Store, claim: Claim, index: int = 0, content: bytes = b"picture") -> ImageRecord:
    """Write a picture and name it."""
    record = await write_picture(store, claim, index, content)
    await store.runs.add_image(claim, record)
    return record


def progress_of(claim: Claim, steps_done: int = 1) -> Progress:
    return Progress(run_id=claim.run.id, fence=claim.fence, steps_done=steps_done, steps_total=50, eta_seconds=2.5)


async def kinds_of(store: Store, run_id: str) -> list[str]:
    events = await store.events.after(run_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.kind.value for event in events]
