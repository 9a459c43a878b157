"""What a claim, a page of runs and a submission take with more and more runs stored, in one SQLite database each.

`python -m benchmarks.growth --runs 1000 100000`
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.filling import fill
from benchmarks.machine import publish
from benchmarks.store import DONE, new_run
from safelight.runs import RunStatus
from safelight.store import Store

NUM_DAYS = 30.0
NUM_FAILED = 20
"""As many as the smallest store has."""

Seconds = dict[str, list[float]]


async def measure(data: Path, *, num_repeats: int) -> Seconds:
    """Each kind of call in turn, so that a slow minute of the machine meets all of them."""
    seconds: Seconds = {}

    async def timed(name: str, call: Callable[..., Awaitable[Any]], *args: object, **named: object) -> Any:
        began = time.perf_counter()
        answer = await call(*args, **named)
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        return answer

    async with await Store.open(data) as store:
        for _ in range(num_repeats):
            await timed("submit", store.runs.create, new_run(), max_queued=10_000)
            [claim] = await timed("claim", store.runs.claim, "bench", limit=1, lease_seconds=60)
            await timed("finish", store.runs.finish, claim, DONE)
            _, cursor = await timed("list: first page", store.runs.list, limit=50)
            await timed("list: second page", store.runs.list, limit=50, cursor=cursor)
            await timed("list: of a project", store.runs.list, limit=50, project="default")
            await timed("list: of a deployment", store.runs.list, limit=50, deployment="posters")
            await timed("list: failed ones", store.runs.list, limit=NUM_FAILED, status=RunStatus.FAILED)
            await timed("claim, nothing waits", store.runs.claim, "bench", limit=1, lease_seconds=60)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 100_000], help="1000000 takes some minutes")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[int, Seconds] = {count: {} for count in options.runs}
    with tempfile.TemporaryDirectory() as root:
        for count in options.runs:
            fill(Path(root) / str(count), num_runs=count, num_days=NUM_DAYS)
        for _ in range(options.rounds):
            for count in options.runs:
                measured = asyncio.run(measure(Path(root) / str(count), num_repeats=options.repeats))
                for name, each in measured.items():
                    found[count].setdefault(name, []).extend(each)
    publish("growth", _table(found))


def _table(found: dict[int, Seconds]) -> Table:
    """Medians; the ratios are to the fewest runs."""
    table = Table(title="milliseconds by stored runs: median (95th percentile), and times the first")
    first = min(found)
    for heading in ("call", *(f"{count:,}" for count in found)):
        table.add_column(heading)
    for name in found[first]:
        cells = [_cell(found[count][name], median(found[first][name])) for count in found]
        table.add_row(name, *cells)
    return table


def _cell(seconds: list[float], base: float) -> str:
    p95 = sorted(seconds)[int(0.95 * len(seconds))]
    return f"{1000 * median(seconds):.2f} ({1000 * p95:.2f}) x {median(seconds) / base:.2f}"


if __name__ == "__main__":
    main()
