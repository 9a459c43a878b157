"""How fast the store is on SQLite and PostgreSQL beside the disk:
`python -m benchmarks.store [--data DIR] [--runs N]` prints a table.

A cycle is submit, claim, finish: three durable transactions. In `lane` rows that many cycles are under way at once; in
the row below them the claims and finishes are another process's. PostgreSQL's last row is a cycle's statements in a
plain loop of its driver: what is left to be won.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from benchmarks.machine import describe
from safelight.runs import Claim, ImageRecord, NewRun, Outcome, OutputFormat, Run, RunParams, RunStatus
from safelight.store import Store
from tests.postgres import find_programs, running

LANES = (1, 8, 32)
SYNCED = ("fsync=on", "synchronous_commit=on")
PICTURE = os.urandom(300_000)
DONE = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0)


@dataclass(frozen=True, slots=True)
class Measured:
    what: str
    per_second: float
    p50_ms: float
    p99_ms: float


def measured(what: str, seconds: float, each: list[float]) -> Measured:
    ordered = sorted(each)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Measured(what, len(each) / seconds, statistics.median(ordered) * 1e3, p99 * 1e3)


def disk_syncs(folder: Path, num_syncs: int) -> Measured:
    """Append a page and sync it, again and again: what the disk can do at most."""
    each, started = [], time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(num_syncs):
            begun = time.perf_counter()
            os.write(file.fileno(), PICTURE[:4096])
            os.fdatasync(file.fileno())
            each.append(time.perf_counter() - begun)
    return measured("syncs of the disk", time.perf_counter() - started, each)


def new_run() -> NewRun:
    params = RunParams(prompt="a red house under a yellow sun")
    return NewRun(
        id=str(uuid.uuid4()), project="bench", key_id=None, deployment="pinhole", deployment_version=1, params=params
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A data folder; its database where that is not a file in it."""

    folder: Path
    url: str | None = None


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Store]:
    store = await Store.open(place.folder, database_url=place.url)
    try:
        yield store
    finally:
        await store.close()


async def cycle(store: Store, *, with_picture: bool) -> None:
    await store.runs.create(new_run(), max_queued=10_000)
    for claim in await store.runs.claim("bench", limit=1, lease_seconds=60):
        if with_picture:
            await add_picture(store, claim)
        await store.runs.finish(claim, DONE)


async def add_picture(store: Store, claim: Claim) -> None:
    stored = await store.images.write(claim.run.id, 0, claim.fence, OutputFormat.PNG, PICTURE)
    await store.runs.add_image(
        claim,
        ImageRecord(
            index=0,
            seed=1,
            output_format=OutputFormat.PNG,
            path=stored.path,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
        ),
    )


async def lanes(place: Place, *, num_runs: int, num_lanes: int, with_picture: bool) -> Measured:
    each: list[float] = []

    async def lane() -> None:
        for _ in range(num_runs // num_lanes):
            begun = time.perf_counter()
            await cycle(store, with_picture=with_picture)
            each.append(time.perf_counter() - begun)

    async with opened(place) as store:
        await cycle(store, with_picture=with_picture)
        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(num_lanes)))
        seconds = time.perf_counter() - started
    return measured(f"cycles, {num_lanes} at once{', with a 300 kB picture' if with_picture else ''}", seconds, each)


async def two_processes(place: Place, *, num_runs: int, num_lanes: int) -> Measured:
    each: list[float] = []

    async def lane() -> None:
        for _ in range(num_runs // num_lanes):
            begun = time.perf_counter()
            run, _ = await store.runs.create(new_run(), max_queued=10_000)
            await wait_for_end(store, run)
            each.append(time.perf_counter() - begun)

    worker = multiprocessing.get_context("spawn").Process(target=work, args=(place,), daemon=True)
    async with opened(place) as store:
        worker.start()
        await wait_for_end(store, (await store.runs.create(new_run(), max_queued=10_000))[0])
        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(num_lanes)))
        seconds = time.perf_counter() - started
    worker.kill()
    worker.join()
    return measured(f"runs submitted here, drawn there, {num_lanes} at once", seconds, each)


async def wait_for_end(store: Store, run: Run) -> None:
    with store.notifications.listen(f"run:{run.id}") as hints:
        while not (await store.runs.get(run.id)).status.has_ended:
            await hints.wait(1.0)


def work(place: Place) -> None:
    asyncio.run(claim_and_finish(place))


async def claim_and_finish(place: Place) -> None:
    async with opened(place) as store:
        with store.notifications.listen("queue") as hints:
            while True:
                claimed = await store.runs.claim("worker", limit=32, lease_seconds=60)
                await asyncio.gather(*(store.runs.finish(claim, DONE) for claim in claimed))
                if not claimed:
                    await hints.wait(1.0)


async def all_rows(place: Place, num_runs: int) -> list[Measured]:
    rows = []
    for num_lanes in LANES:
        rows.append(await lanes(place, num_runs=num_runs, num_lanes=num_lanes, with_picture=False))
    rows.append(await lanes(place, num_runs=num_runs // 2, num_lanes=1, with_picture=True))
    return [*rows, await two_processes(place, num_runs=num_runs, num_lanes=LANES[-1])]


async def statements(place: Place) -> list[tuple[bytes, Any]]:
    """What the database is asked in a cycle, with its values."""
    asked: list[tuple[bytes, Any]] = []

    def note(_: object, __: object, statement: str, values: Any, *___: object) -> None:
        asked.append((statement.encode(), values))

    async with opened(place) as store:
        event.listen(store._database._engine, "before_cursor_execute", note)
        await cycle(store, with_picture=False)
    return asked


def bare(place: Place, *, num_runs: int, num_together: int) -> Measured:
    """The statements of the store without the store, on one connection, so many runs to a commit."""
    (create, new), (add, fact), (claim, wanted), _, (end, known), _ = asyncio.run(statements(place))
    each: list[float] = []
    with psycopg.connect(place.url or "") as connection:
        started = time.perf_counter()
        for _ in range(num_runs // num_together):
            begun = time.perf_counter()
            ids = [str(uuid.uuid4()) for _ in range(num_together)]
            # A claim knows no run before it has one, and leaves its name unread.
            acts = ((create, new, "id"), (claim, wanted, "this_id"), (end, known, "this_id"))
            for sequence, (statement, values, name) in enumerate(acts, 1):
                for run_id in ids:
                    assert connection.execute(statement, {**values, name: run_id}).fetchone() is not None
                facts = [{**fact, "run_id": run_id, "sequence": sequence} for run_id in ids]
                connection.cursor().executemany(add, facts)
                connection.commit()
            each += [time.perf_counter() - begun] * num_together
        seconds = time.perf_counter() - started
    return measured(f"the same statements without the store, {num_together} to a commit", seconds, each)


def both_databases(folder: Path, num_runs: int) -> Iterator[tuple[str, list[Measured]]]:
    """SQLite, and PostgreSQL where there is one, both with their data below `folder` and synced; the
    disk around them."""
    yield "disk", [disk_syncs(folder, 200)]
    yield "SQLite", asyncio.run(all_rows(Place(folder / "sqlite"), num_runs))
    if find_programs() is not None:
        with running(settings=SYNCED, folder=folder) as server:
            place = Place(folder / "postgresql", server.url())
            rows = asyncio.run(all_rows(place, num_runs))
            yield "PostgreSQL", [*rows, bare(place, num_runs=num_runs, num_together=LANES[-1])]
    yield "disk", [disk_syncs(folder, 200)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None, help="measure in a new folder below this one")
    parser.add_argument("--runs", type=int, default=320)
    arguments = parser.parse_args()
    table = Table("on", "what", "per second", "p50 ms", "p99 ms", caption=describe())
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        # PostgreSQL's programs refuse to be root's, and its user has to get here.
        Path(folder).chmod(0o755)
        for where, rows in both_databases(Path(folder), arguments.runs):
            for row in rows:
                table.add_row(where, row.what, f"{row.per_second:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
