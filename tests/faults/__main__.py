"""All experiments at full size: `python -m tests.faults [--share 0.01] [--only sqlite] [--write FILE]` prints a table.

Every figure is kept as soon as it is there (`--keep FILE`): with `--resume` a run that was broken off goes on, and runs of
parts (`--only`, which takes names of `--list`, promises and databases) come together in one table.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from tests.postgres import MEMORY

from .experiments import EXPERIMENTS, Experiment, Size
from .figures import Figure

KEPT = Path("build/faults.json")

PROMISES = """
1 an accepted run is never lost and has one result; 2 every end is told at least once, with the same bytes; 3 what was answered survives power loss;
4 a half-done run goes on from its checkpoint; 5 one Idempotency-Key makes one run; 6 a full disk or an absent database never corrupts and never lies;
7 a run that kills its worker ends as failed and nobody else notices; 8 SIGTERM is clean; 9 webhooks reach nothing inside; 10 a dead or hostile endpoint
harms nobody else; 11 signatures verify, and rotation has no gap; 12 no input makes a server error or an undocumented answer; 13 the store obeys its state
machine on both databases; 14 nothing over the limits is accepted; 15 no pickle is ever loaded; 16 keys are not to be had from database, logs, traces,
answers; 17 slow clients do not stop the door; 18 the dashboard cannot be driven from another site, and prompts run no script; 19 upgrades keep data;
20 load leaks nothing.
"""


class Results:
    """Figures by experiment, kept in a file after each."""

    def __init__(self, path: Path, size: Size) -> None:
        self._path = path
        self._size = size
        self.minutes: dict[str, float] = {}
        self.figures: dict[str, list[Figure]] = {}

    def load(self) -> None:
        """What is there of the same size."""
        if not self._path.exists():
            return
        kept = json.loads(self._path.read_text(encoding="utf-8"))
        if kept["share"] == self._size.share:
            self.minutes = kept["minutes"]
            self.figures = {name: [Figure(**each) for each in found] for name, found in kept["figures"].items()}

    def keep(self, name: str, figures: list[Figure], minutes: float) -> None:
        self.figures[name], self.minutes[name] = figures, minutes
        kept = {name: [asdict(each) for each in found] for name, found in self.figures.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"share": self._size.share, "minutes": self.minutes, "figures": kept}
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


def carry_out(experiments: dict[str, Experiment], size: Size, results: Results) -> None:
    for number, (name, experiment) in enumerate(experiments.items(), 1):
        if name in results.figures:
            _say(f"{number}/{len(experiments)} {name}: kept from before")
            continue
        _say(f"{number}/{len(experiments)} {name} ...")
        begun = time.monotonic()
        # In memory: a process that is killed leaves what it wrote to the kernel, which syncing does not change.
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            figures = experiment.carry_out(Path(folder), size)
        minutes = (time.monotonic() - begun) / 60
        results.keep(name, figures, minutes)
        for figure in figures:
            _say(f"  {figure.promise}: {figure.done}: {figure.figure}: {figure.verdict} ({minutes:.1f} min)")


def as_markdown(results: Results, size: Size) -> str:
    rows = [f"| {each.promise} | {each.done} | {each.figure} | {each.verdict} |" for each in results.in_order()]
    return "\n".join(
        [
            "# What the server promises under faults",
            "",
            "Written by `make faults`: real processes of the server over FakeModel, killed, stopped, stalled and starved; and the",
            "tests of the usual suite that prove a promise, with what they measured. `python -m tests.faults --list` names the",
            "experiments, `--only` does one or those of one database, `--resume` goes on where a run was broken off.",
            "`python -m tests.faults.guards` takes out what keeps a promise, in a copy, and sees its test fail.",
            "",
            f"{describe()}; {size.share:.0%} of the full size, in {sum(results.minutes.values()):.0f} minutes.",
            "",
            "| promise | what was done | figure | verdict |",
            "|---|---|---|---|",
            *rows,
            PROMISES,
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
