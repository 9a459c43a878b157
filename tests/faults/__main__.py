"""All experiments at full size: `python -m tests.faults [--share 0.01] [--only sqlite] [--write FILE]` prints a table.

Every figure is kept as soon as it is there (`--keep FILE`): with `--resume` a run that was broken off goes on, and runs
of parts (`--only`, which takes names of `--list`, promises and databases) come together in one table.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from tests.postgres import MEMORY

from .crew import FORK, die_with_parent
from .experiments import EXPERIMENTS, Experiment, Size
from .figures import Figure

KEPT = Path("build/faults.json")
NUM_LANES = 2
"""Experiments at a time: most of them wait a good deal."""

PROMISES = """
1 an accepted run is never lost and has one result; 2 every end is told at least once, with the same bytes; 3 what was
answered survives power loss; 4 a half-done run goes on from its checkpoint; 5 one Idempotency-Key makes one run; 6 a
full disk or an absent database never corrupts and never lies; 7 a run that kills its worker ends as failed and nobody
else notices; 8 SIGTERM is clean; 9 webhooks reach nothing inside; 10 a dead or hostile endpoint harms nobody else; 11
signatures verify, and rotation has no gap; 12 no input makes a server error or an undocumented answer; 13 the store
obeys its state machine on both databases; 14 nothing over the limits is accepted; 15 no pickle is ever loaded; 16 keys
are not to be had from database, logs, traces, answers; 17 slow clients do not stop the door; 18 the dashboard cannot be
driven from another site, and prompts run no script; 19 upgrades keep data; 20 load leaks nothing.

Closed within, of 17: a client whose request is not whole is closed at `server.receive_timeout_seconds`, 15 s; a reader
that takes less than 8 KiB a second, as long after its answer began to wait, and one that slows down after it had taken
enough for a while within twice that.
"""


class Results:
    """Figures by experiment, kept in a file after each."""

    def __init__(self, path: Path, size: Size) -> None:
        self._path = path
        self._size = size
        self.minutes: dict[str, float] = {}
        self.total_minutes = 0.0
        self.figures: dict[str, list[Figure]] = {}

    def load(self) -> None:
        """What is there of the same size."""
        if not self._path.exists():
            return
        kept = json.loads(self._path.read_text(encoding="utf-8"))
        if kept["share"] == self._size.share:
            self.minutes = kept["minutes"]
            self.total_minutes = kept["total_minutes"]
            self.figures = {name: [Figure(**each) for each in found] for name, found in kept["figures"].items()}

    def keep(self, name: str, figures: list[Figure], minutes: float, passed: float) -> None:
        """`minutes` are the experiment's, `passed` those since something was kept last."""
        self.figures[name], self.minutes[name] = figures, minutes
        self.total_minutes += passed
        kept = {name: [asdict(each) for each in found] for name, found in self.figures.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "share": self._size.share,
            "total_minutes": self.total_minutes,
            "minutes": self.minutes,
            "figures": kept,
        }
        self._path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def in_order(self) -> list[Figure]:
        found = [figure for name in EXPERIMENTS for figure in self.figures.get(name, [])]
        return sorted(found, key=lambda figure: int(figure.promise.partition(" ")[0].rstrip(",")))


def chosen(only: Iterable[str]) -> dict[str, Experiment]:
    """The experiments that every word of `only` fits, by name, promise or database."""
    words = [word.lower() for word in only]
    unknown = [word for word in words if not any(each.fits(name, word) for name, each in EXPERIMENTS.items())]
    if unknown:
        raise SystemExit(f"no experiment fits {', '.join(unknown)}; --list names them")
    return {name: each for name, each in EXPERIMENTS.items() if all(each.fits(name, word) for word in words)}


@dataclass(frozen=True, slots=True)
class Lane:
    """An experiment under way in a process of its own, forked from this warm one."""

    name: str
    begun: float
    figures: Connection

    @classmethod
    def start(cls, name: str, experiment: Experiment, size: Size) -> Lane:
        mine, its = FORK.Pipe()

        def call() -> None:
            die_with_parent()
            its.send(_figures(name, experiment, size))

        FORK.Process(target=call).start()
        its.close()
        return cls(name, time.monotonic(), mine)

    def end(self) -> tuple[list[Figure], float]:
        """What came of it, and its minutes."""
        try:
            figures = self.figures.recv()
        except EOFError:
            figures = [Figure(EXPERIMENTS[self.name].promises, self.name, "nothing", ["its process was killed"])]
        return figures, (time.monotonic() - self.begun) / 60


def _figures(name: str, experiment: Experiment, size: Size) -> list[Figure]:
    try:
        # In memory: a process that is killed leaves what it wrote to the kernel, which syncing does not change.
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            return experiment.carry_out(Path(folder), size)
    except Exception:
        return [Figure(experiment.promises, name, "nothing", [traceback.format_exc()[-500:].replace("\n", " ")])]


def carry_out(experiments: dict[str, Experiment], size: Size, results: Results) -> None:
    waiting = deque(name for name in experiments if name not in results.figures)
    lanes: dict[Connection, Lane] = {}
    kept_at = time.monotonic()
    while waiting or lanes:
        while waiting and len(lanes) < NUM_LANES:
            _say(f"{waiting[0]} ...")
            lane = Lane.start(waiting[0], experiments[waiting.popleft()], size)
            lanes[lane.figures] = lane
        ready = wait(lanes)
        for lane in [lane for connection, lane in lanes.items() if connection in ready]:
            del lanes[lane.figures]
            figures, minutes = lane.end()
            now = time.monotonic()
            results.keep(lane.name, figures, minutes, (now - kept_at) / 60)
            kept_at = now
            for figure in figures:
                _say(f"  {figure.promise}: {figure.done}: {figure.figure}: {figure.verdict} ({minutes:.1f} min)")


def as_markdown(results: Results, size: Size) -> str:
    rows = [f"| {each.promise} | {each.done} | {each.figure} | {each.verdict} |" for each in results.in_order()]
    minutes = ", ".join(f"{name} {results.minutes[name]:.1f}" for name in EXPERIMENTS if name in results.minutes)
    return "\n".join(
        [
            "# What the server promises under faults",
            "",
            "Written by `make faults`: real processes of the server over FakeModel, killed, stopped, stalled and",
            "starved; and the tests of the usual suite that prove a promise, with what they measured.",
            "`python -m tests.faults --list` names the experiments, `--only` does one or those of one database,",
            "`--resume` goes on where a run was broken off.",
            "`--only soak --share 19` judges the last row over more than an hour: see [benchmarks.md](benchmarks.md).",
            "`python -m tests.faults.guards` takes out what keeps a promise, in a copy, and sees its test fail.",
            "",
            f"{describe()}; {size.share:.0%} of the full size, in {results.total_minutes:.0f} minutes,"
            f" {NUM_LANES} experiments at a time.",
            "",
            "| promise | what was done | figure | verdict |",
            "|---|---|---|---|",
            *rows,
            PROMISES,
            f"Minutes: {minutes}.",
            "",
        ]
    )


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full size; smaller for a look")
    parser.add_argument("--only", nargs="+", default=[], help="names, promises or databases, all of which must fit")
    parser.add_argument("--resume", action="store_true", help="leave out what is kept already")
    parser.add_argument("--keep", type=Path, default=KEPT, help="where figures are kept as they come")
    parser.add_argument("--write", type=Path, default=None, help="write the table of all kept figures to this file")
    parser.add_argument("--list", action="store_true", help="name the experiments and do nothing")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    experiments, size = chosen(arguments.only), Size(arguments.share)
    if arguments.list:
        print("\n".join(f"{name}: promise {each.promises}" for name, each in experiments.items()))
        return 0
    # What is refused and tried again is what is looked for.
    logging.basicConfig(level=logging.CRITICAL)
    results = Results(arguments.keep, size)
    if arguments.resume or arguments.only:
        results.load()
    if not arguments.resume:
        for name in experiments:
            results.figures.pop(name, None)
    carry_out(experiments, size, results)
    table = Table("promise", "what was done", "figure", "verdict")
    for figure in results.in_order():
        table.add_row(figure.promise, figure.done, figure.figure, figure.verdict)
    Console().print(table)
    if arguments.write is not None:
        arguments.write.write_text(as_markdown(results, size), encoding="utf-8")
    return 1 if any(figure.faults for figure in results.in_order()) else 0


if __name__ == "__main__":
    sys.exit(main())
