"""The dashboard's figures of the last day."""

from __future__ import annotations

from safelight.api.dashboard.overview import make_overview
from safelight.runs import RunStatus
from safelight.store.figures import Activity, EndedRun

NOW = 1_000_000.0


def test_runs_of_before_a_clock_was_set_back_are_in_no_hour_to_come() -> None:
    ended = [
        EndedRun("pinhole", RunStatus.SUCCEEDED, NOW + 7190, NOW + 7190, NOW + 7200),
        EndedRun("pinhole", RunStatus.SUCCEEDED, NOW - 60, NOW - 36, NOW + 3600),
    ]
    overview = make_overview(Activity(at=NOW, images=(), ended=ended, running=(), waiting={}), ())
    assert overview.busy_last_hour == 36 / 3600
