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
from .hostile import hostile_endpoints, rotation
from .kills import kill_loop
from .limits import limits
from .power import power_cuts
from .proven import read_report
from .sigterm import sigterm
from .soak import Sample, slope_per_hour, soak
from .stops import Hanging, poison
from .upgrade import upgrade

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
    assert_kept(sigterm(folder, num_times=5, refused_within=8))


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


def test_hostile_endpoints_harm_nobody_else(folder: Path) -> None:
    assert_kept(hostile_endpoints(folder, num_good=40, max_p99_seconds=8))


def test_a_rotated_secret_has_no_gap(folder: Path) -> None:
    assert_kept(rotation(folder, num_deliveries=30))


def test_nothing_over_the_limits_is_accepted(folder: Path) -> None:
    assert_kept(limits(folder, num_bodies=300))


def test_every_schema_there_was_is_brought_up_to_date(folder: Path) -> None:
    assert_kept(upgrade("SQLite", ((folder / str(number), None) for number in range(99)), num_runs=30))


def test_a_soak_ends_with_everything_done(folder: Path) -> None:
    assert_kept(soak(folder, seconds=5))


def test_a_leak_is_told_in_megabytes_an_hour() -> None:
    steady = [Sample(60.0 * minute, 80.0, 40) for minute in range(120)]
    leaking = [Sample(60.0 * minute, 80.0 + minute / 40, 40) for minute in range(120)]
    assert slope_per_hour(steady) == pytest.approx(0.0, abs=1e-6)
    assert slope_per_hour(leaking) == pytest.approx(1.5)


def test_a_proof_that_fails_or_is_left_out_is_not_kept() -> None:
    found = read_report(
        "<testsuites><testsuite><testcase name='a[1]'><properties><property name='n' value='3'/>"
        "</properties></testcase>"
        "<testcase name='a[2]'/><testcase name='b'><failure/></testcase>"
        "<testcase name='c'><skipped message='no browser'/></testcase></testsuite></testsuites>"
    )
    assert (found.passed["a"], found.measured, found.failed, found.skipped) == (2, {"n": "3"}, ["b"], ["no browser"])
