"""A small version of every experiment; `make faults` does them at full size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import MEMORY, MISSING, find_programs, running

from .away import NO_MOUNT, database_gone, full_disk
from .disk import NO_STRACE, can_record
from .figures import Figure
from .kills import kill_loop
from .power import power_cuts
from .stops import Hanging, poison, sigterm

SMALL_KILLS = {"num_runs": 40, "num_kills": 5, "num_clients": 6, "num_keys": 4}

needs_postgres = pytest.mark.skipif(find_programs() is None, reason=MISSING)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def assert_kept(*figures: Figure) -> None:
    assert [figure for figure in figures if figure.faults] == []


def test_kills_lose_and_double_nothing_on_sqlite(folder: Path) -> None:
    assert_kept(*kill_loop(folder, "SQLite", None, **SMALL_KILLS))


@needs_postgres
def test_kills_lose_and_double_nothing_on_postgresql(folder: Path) -> None:
    with running() as server:
        assert_kept(*kill_loop(folder, "PostgreSQL", server.url(), **SMALL_KILLS))


def test_a_run_that_kills_its_worker_ends_alone(folder: Path) -> None:
    assert_kept(poison(folder, num_runs=5))


def test_a_run_that_hangs_its_engine_ends_alone(folder: Path) -> None:
    assert_kept(poison(folder, num_runs=5, model=Hanging))


def test_sigterm_under_load_is_clean(folder: Path) -> None:
    assert_kept(sigterm(folder, num_times=4))


def test_a_full_disk_is_said_and_nothing_is_lost(folder: Path) -> None:
    figure = full_disk(folder, num_rounds=1)
    if figure is None:
        pytest.skip(NO_MOUNT)
    assert_kept(figure)


def test_what_was_answered_survives_power_cuts(folder: Path) -> None:
    if not can_record():
        pytest.skip(NO_STRACE)
    assert_kept(power_cuts(folder, num_cuts=30, num_runs=9))


@needs_postgres
def test_a_database_that_is_gone_is_said_and_nothing_is_lost(folder: Path) -> None:
    with running() as server:
        assert_kept(database_gone(folder, server, seconds=3))
