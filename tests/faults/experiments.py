"""Every experiment by name: which promises it is about, on which database, and how large it is at full size."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.fuzzing import fuzz
from tests.postgres import MISSING, Postgres, find_programs, running

from .away import NO_MOUNT, database_gone, full_disk
from .disk import NO_STRACE, can_record
from .figures import Figure, check
from .hostile import hostile_endpoints, rotation
from .kills import kill_loop
from .limits import limits
from .power import power_cuts
from .proven import PROOFS
from .sigterm import sigterm
from .soak import soak
from .stops import Hanging, poison
from .upgrade import upgrade
from .walks import walk_both

GONE_SECONDS = 60.0
NUM_CUT_RUNS = 60
SOAK_SECONDS = 240.0
FUZZ_SEED = 1
FUZZ_EXAMPLES = 160
"""For each operation and phase; together with the dashboard's some more than the 5,000 requests that are asked for."""

FUZZ_ASKS = 50
"""Of each page and each form of the dashboard."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of the full size is done."""

    share: float

    def of(self, count: int, least: int = 2) -> int:
        return max(least, round(count * self.share))


@dataclass(frozen=True, slots=True)
class Experiment:
    """`promises` and `database` are what it is found by."""

    promises: str
    carry_out: Callable[[Path, Size], list[Figure]]
    database: str = ""

    def fits(self, name: str, word: str) -> bool:
        return word in {name, self.database, *self.promises.split(", ")}


def _kills(size: Size) -> dict[str, int]:
    return {
        "num_runs": size.of(10_000, 40),
        "num_kills": size.of(1_000, 4),
        "num_clients": size.of(64, 8),
        "num_keys": size.of(200, 5),
    }


def _left_out(promise: str, what: str, why: str) -> list[Figure]:
    return [Figure(promise, what, "not done", [why])]


def _full_disk(folder: Path, size: Size) -> list[Figure]:
    figure = full_disk(folder, num_rounds=size.of(5))
    return _left_out("6", "full disk", NO_MOUNT) if figure is None else [figure]


def _power(folder: Path, size: Size) -> list[Figure]:
    if not can_record():
        return _left_out("3", "power cuts", NO_STRACE)
    return [power_cuts(folder, num_cuts=size.of(1_000, 20), num_runs=NUM_CUT_RUNS)]


def _fuzz(folder: Path, size: Size) -> list[Figure]:
    found = asyncio.run(fuzz(max_examples=size.of(FUZZ_EXAMPLES), num_asks=size.of(FUZZ_ASKS), seed=FUZZ_SEED))
    faults = check(found.exit_status == 0, found.output[-500:])
    faults += check(found.num_server_errors == 0, f"{found.num_server_errors} server errors")
    faults += check(found.num_requests >= 5_000 or size.share < 1, "fewer than 5,000 requests")
    unseen = [route for route, statuses in found.pages.items() if statuses.total() == 0]
    faults += check(not unseen, f"{unseen} of the dashboard were never asked")
    faults += check(found.num_drawn > 0, "nothing that was asked for was drawn")
    done = "schemathesis, all phases, and forms made up for the dashboard, over a real socket; a real worker behind it"
    return [Figure("12", done, found.figure, faults)]


def _upgrade_sqlite(folder: Path, size: Size) -> list[Figure]:
    places = ((folder / str(number), None) for number in range(99))
    return [upgrade("SQLite", places, num_runs=size.of(10_000, 50))]


def _upgrade_postgresql(folder: Path, size: Size, server: Postgres) -> list[Figure]:
    def places() -> Iterator[tuple[Path, str | None]]:
        for number in range(99):
            server.execute(f"CREATE DATABASE upgrade_{number}")
            yield folder / str(number), server.url(f"upgrade_{number}")

    with contextlib.closing(places()) as fresh:
        return [upgrade("PostgreSQL", fresh, num_runs=size.of(10_000, 50))]


def _on_postgresql(promises: str, work: Callable[[Path, Size, Postgres], list[Figure]]) -> Experiment:
    """With a server of its own."""

    def carry_out(folder: Path, size: Size) -> list[Figure]:
        if find_programs() is None:
            return _left_out(promises, "on PostgreSQL", MISSING)
        with running() as server:
            return work(folder, size, server)

    return Experiment(promises, carry_out, "postgresql")


def _walks(folder: Path, size: Size) -> list[Figure]:
    if find_programs() is None:
        return _left_out("13", "walks over both databases", MISSING)
    return [walk_both(folder, num_walks=size.of(2_000), num_steps=50)]


EXPERIMENTS: Mapping[str, Experiment] = {
    # The longest first, so that the last ones end together.
    "kills-postgresql": _on_postgresql(
        "1, 2, 5", lambda f, size, server: kill_loop(f, "PostgreSQL", server.url(), **_kills(size))
    ),
    "walks": Experiment("13", _walks, "postgresql"),
    "kills-sqlite": Experiment("1, 2, 5", lambda f, size: kill_loop(f, "SQLite", None, **_kills(size)), "sqlite"),
    "fuzz": Experiment("12", _fuzz, "sqlite"),
    "soak": Experiment("20", lambda f, size: [soak(f, seconds=max(10.0, SOAK_SECONDS * size.share))], "sqlite"),
    "power": Experiment("3", _power, "sqlite"),
    "sigterm": Experiment("8", lambda f, size: [sigterm(f, num_times=size.of(100, 4))], "sqlite"),
    "database-gone": _on_postgresql(
        "6", lambda f, size, server: [database_gone(f, server, seconds=max(4.0, GONE_SECONDS * size.share))]
    ),
    "upgrade-sqlite": Experiment("19", _upgrade_sqlite, "sqlite"),
    "upgrade-postgresql": _on_postgresql("19", _upgrade_postgresql),
    "full-disk": Experiment("6", _full_disk, "sqlite"),
    "hostile": Experiment("10", lambda f, size: [hostile_endpoints(f, num_good=size.of(1_000, 50))], "sqlite"),
    "rotation": Experiment("11", lambda f, size: [rotation(f, num_deliveries=size.of(1_000, 60))], "sqlite"),
    "limits": Experiment("14", lambda f, size: [limits(f, num_bodies=size.of(3_000, 100))], "sqlite"),
    **{
        f"proof-{promise}": Experiment(promise, lambda f, size, proof=proof: [proof.carry_out()])
        for promise, proof in PROOFS.items()
    },
    "poison": Experiment("7", lambda f, size: [poison(f, num_runs=8)], "sqlite"),
    "hang": Experiment("7", lambda f, size: [poison(f, num_runs=8, model=Hanging)], "sqlite"),
}
