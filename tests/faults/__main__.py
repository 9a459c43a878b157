"""All experiments at full size: `python -m tests.faults [--share 0.01] [--write FILE]` prints a table, and keeps it.

`--share` makes every count smaller, for a look; what is kept says which share it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from tests.postgres import MEMORY, MISSING, find_programs, running

from .away import NO_MOUNT, database_gone, full_disk
from .disk import NO_STRACE, can_record
from .figures import Figure
from .kills import kill_loop
from .power import power_cuts
from .stops import Hanging, poison, sigterm
from .walks import walk_both

NUM_RUNS, NUM_KILLS = 10_000, 1_000
NUM_CLIENTS, NUM_KEYS = 64, 200
NUM_TERMS = 100
NUM_WALKS, NUM_STEPS = 2_000, 50
GONE_SECONDS = 60.0
NUM_CUTS, NUM_CUT_RUNS = 1_000, 60


@dataclass(frozen=True, slots=True)
class Size:
    """How much of the full size is done."""

    share: float

    def of(self, count: int, least: int = 2) -> int:
        return max(least, round(count * self.share))


def experiments(size: Size) -> Iterator[Callable[[Path], list[Figure]]]:
    kills = {
        "num_runs": size.of(NUM_RUNS, 40),
        "num_kills": size.of(NUM_KILLS, 4),
        "num_clients": size.of(NUM_CLIENTS, 8),
        "num_keys": size.of(NUM_KEYS, 5),
    }
    yield lambda folder: kill_loop(folder, "SQLite", None, **kills)
    yield lambda folder: [poison(folder, num_runs=8)]
    yield lambda folder: [poison(folder, num_runs=8, model=Hanging)]
    yield lambda folder: [sigterm(folder, num_times=size.of(NUM_TERMS, 4))]
    yield lambda folder: [full_disk(folder, num_rounds=size.of(5)) or _left_out("6", "full disk", NO_MOUNT)]
    yield lambda folder: [_power(folder, num_cuts=size.of(NUM_CUTS, 20))]
    yield from _on_postgresql(size, kills)


def _on_postgresql(size: Size, kills: dict[str, int]) -> Iterator[Callable[[Path], list[Figure]]]:
    if find_programs() is None:
        yield lambda folder: [_left_out("1, 2, 5, 6, 13", "all on PostgreSQL", MISSING)]
        return

    def killed(folder: Path) -> list[Figure]:
        with running() as server:
            return kill_loop(folder, "PostgreSQL", server.url(), **kills)

    def gone(folder: Path) -> list[Figure]:
        with running() as server:
            return [database_gone(folder, server, seconds=max(4.0, GONE_SECONDS * size.share))]

    yield killed
    yield gone
    yield lambda folder: [walk_both(folder, num_walks=size.of(NUM_WALKS), num_steps=NUM_STEPS)]


def _power(folder: Path, *, num_cuts: int) -> Figure:
    if not can_record():
        return _left_out("3", "power cuts", NO_STRACE)
    return power_cuts(folder, num_cuts=num_cuts, num_runs=NUM_CUT_RUNS)


def _left_out(promise: str, what: str, why: str) -> Figure:
    return Figure(promise, what, "not done", [why])


def carry_out(size: Size, say: Callable[[str], None]) -> list[Figure]:
    figures: list[Figure] = []
    for experiment in experiments(size):
        # In memory: a process that is killed leaves what it wrote to the kernel, which syncing does not change.
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            for figure in experiment(Path(folder)):
                figures.append(figure)
                say(f"{figure.promise}: {figure.done}: {figure.figure}: {figure.verdict}")
    return figures


def as_markdown(figures: list[Figure], size: Size, seconds: float) -> str:
    rows = [f"| {figure.promise} | {figure.done} | {figure.figure} | {figure.verdict} |" for figure in figures]
    return "\n".join(
        [
            "# What the server promises under faults",
            "",
            "Written by `make faults`: real processes of the server over FakeModel, killed, stopped, stalled and starved.",
            "A row says which promise, what was done, what came of it, and whether the promise was kept.",
            "",
            f"{describe()}; {size.share:.0%} of the full size, in {seconds / 60:.0f} minutes.",
            "",
            "| promise | what was done | figure | verdict |",
            "|---|---|---|---|",
            *rows,
            "",
            "1 an accepted run is never lost and has one result; 2 every end is told at least once, with the same bytes;",
            "3 what was answered survives power loss;",
            "5 one Idempotency-Key makes one run; 6 a full disk or an absent database never corrupts and never lies;",
            "7 a run that kills its worker ends as failed and nobody else notices; 8 SIGTERM is clean; 13 the store obeys its",
            "state machine on both databases.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--write", type=Path, default=None, help="keep the table in this file")
    arguments = parser.parse_args()
    size, begun = Size(arguments.share), time.monotonic()
    figures = carry_out(size, lambda line: print(line, file=sys.stderr, flush=True))
    table = Table("promise", "what was done", "figure", "verdict")
    for figure in figures:
        table.add_row(figure.promise, figure.done, figure.figure, figure.verdict)
    Console().print(table)
    if arguments.write is not None:
        arguments.write.write_text(as_markdown(figures, size, time.monotonic() - begun))
    return 1 if any(figure.faults for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
