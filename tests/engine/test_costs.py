"""Measured times and the time left that follows."""

from __future__ import annotations

import pytest

from safelight.engine.costs import Costs
from safelight.engine.tasks import BatchKey

from .test_scheduler import LARGE, SMALL, make_task


def sixteen(key: BatchKey) -> int:
    return 16


def test_the_first_measurement_gives_way_to_the_second() -> None:
    costs = Costs()
    costs.record_step(SMALL, 2, 9.0)
    assert costs.step_seconds(SMALL, 2) == 9.0
    costs.record_step(SMALL, 2, 1.0)
    assert costs.step_seconds(SMALL, 2) == 1.0
    costs.record_step(SMALL, 2, 2.0)
    assert costs.step_seconds(SMALL, 2) == pytest.approx(1.2)


def test_unmeasured_rows_are_judged_by_the_nearest_measured() -> None:
    costs = Costs()
    assert costs.step_seconds(SMALL, 4) is None
    costs.record_step(SMALL, 2, 1.0)
    costs.record_step(SMALL, 8, 3.2)
    assert costs.step_seconds(SMALL, 4) == pytest.approx(2.0)
    assert costs.step_seconds(SMALL, 16) == pytest.approx(6.4)


def test_time_left_counts_the_work_ahead_and_the_images_own_steps() -> None:
    costs = Costs()
    costs.record_step(SMALL, 2, 1.0)
    costs.record_step(SMALL, 4, 2.0)
    costs.record_decode(SMALL, 0.5)
    first, second = make_task("a"), make_task("b")
    assert costs.seconds_left([first], sixteen)[first.run] == pytest.approx(5.5)
    left = costs.seconds_left([first, second], sixteen)
    assert left[first.run] == pytest.approx(10.5), "the batch is shared"
    assert left[second.run] == pytest.approx(11.0)
    assert costs.seconds_left([first, second], lambda key: 2)[first.run] == pytest.approx(5.5), "first come, first"


def test_a_shape_never_measured_has_no_time_left() -> None:
    assert Costs().seconds_left([make_task("a", key=LARGE)], sixteen) == {}
