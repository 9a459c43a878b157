"""Measured times, and how many rows are worth a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safelight.engine.costs import ENOUGH, MAX_SHAPES, Costs
from safelight.runs import LoraUse

from .test_scheduler import SMALL


def measure(costs: Costs, rows: int, seconds: float) -> None:
    for _ in range(ENOUGH):
        costs.record_step(SMALL, rows, seconds)


def test_the_first_measurement_gives_way_to_the_second() -> None:
    costs = Costs()
    costs.record_step(SMALL, 2, 9.0)
    assert costs.step_seconds(SMALL, 2) == 9.0
    costs.record_step(SMALL, 2, 1.0)
    assert costs.step_seconds(SMALL, 2) == 1.0
    costs.record_step(SMALL, 2, 2.0)
    assert costs.step_seconds(SMALL, 2) == pytest.approx(1.2)


def test_unmeasured_rows_are_judged_by_their_measured_neighbours() -> None:
    costs = Costs()
    assert costs.step_seconds(SMALL, 4) is None
    costs.record_step(SMALL, 2, 1.0)
    costs.record_step(SMALL, 8, 3.2)
    assert costs.step_seconds(SMALL, 4) == pytest.approx(1.0 + 2.2 / 3), "on the line between both"
    assert costs.step_seconds(SMALL, 16) == pytest.approx(6.4), "in proportion beyond them"
    assert costs.step_seconds(SMALL, 1) == pytest.approx(0.5)


def test_the_knee_is_the_fewest_rows_with_nearly_the_best_rate() -> None:
    costs = Costs()
    assert costs.rows_worth(SMALL, 16) == 16, "nothing is known"
    for rows, seconds in ((1, 1.0), (2, 1.1), (4, 1.2), (8, 2.3), (16, 4.6)):
        measure(costs, rows, seconds)
    assert costs.rows_worth(SMALL, 16) == 4
    assert costs.rows_worth(SMALL, 3) == 3, "no more than fit"


def test_the_neighbours_of_the_best_are_tried_before_it_is_believed() -> None:
    costs = Costs()
    measure(costs, 8, 8.0)
    assert costs.rows_worth(SMALL, 16) == 4, "half as many"
    measure(costs, 4, 4.0)
    assert costs.rows_worth(SMALL, 16) == 2
    measure(costs, 2, 3.0)
    assert costs.rows_worth(SMALL, 16) == 4, "no better than half"
    costs = Costs()
    measure(costs, 1, 1.0)
    assert costs.rows_worth(SMALL, 16) == 2, "twice as many"


def test_a_number_of_rows_that_no_batch_can_have_is_not_waited_for() -> None:
    """Guided images only: every batch has an even number of rows."""
    costs = Costs()
    measure(costs, 2, 1.0)
    assert costs.rows_worth(SMALL, 16) == 4, "not one"
    measure(costs, 6, 1.2)
    assert costs.rows_worth(SMALL, 16) == 4, "not three"
    measure(costs, 4, 1.1)
    assert costs.rows_worth(SMALL, 16) == 12, "the best is the widest so far"


def test_rows_that_a_device_is_slow_with_do_not_hide_that_twice_as_many_pay() -> None:
    costs = Costs()
    measure(costs, 2, 1.0)
    measure(costs, 4, 1.5)
    measure(costs, 6, 2.6)
    assert costs.rows_worth(SMALL, 6) == 4, "six are done in two parts"
    assert costs.rows_worth(SMALL, 16) == 8, "and are no reason not to try eight"
    measure(costs, 8, 2.6)
    measure(costs, 16, 5.2)
    assert costs.rows_worth(SMALL, 16) == 8


def test_an_odd_limit_that_no_batch_of_guided_images_reaches_is_not_waited_for() -> None:
    costs = Costs()
    measure(costs, 2, 1.0)
    measure(costs, 4, 1.5)
    assert costs.rows_worth(SMALL, 7) == 7, "six were never tried"
    measure(costs, 6, 2.6)
    assert costs.rows_worth(SMALL, 7) == 4


def test_what_a_run_takes_alone_is_its_steps_and_its_decodes() -> None:
    costs = Costs()
    assert costs.run_seconds(SMALL, 2, num_rows=2, num_steps=10) == 0.0, "not yet known"
    costs.record_step(SMALL, 4, 1.0)
    costs.record_decode(SMALL, 3.0)
    assert costs.run_seconds(SMALL, 2, num_rows=2, num_steps=10) == 10 * 1.0 + 2 * 3.0


def test_a_rate_counts_once_it_was_measured_often_enough_and_other_work_hides_little_of_it() -> None:
    costs = Costs()
    for _ in range(ENOUGH - 1):
        costs.record_step(SMALL, 8, 1.0)
    assert costs.rows_worth(SMALL, 16) == 16
    for rows, seconds in ((1, 1.0), (2, 1.0), (4, 2.0)):
        measure(costs, rows, seconds)
        for _ in range(20):
            costs.record_step(SMALL, rows, seconds * 5)
            costs.record_step(SMALL, rows, seconds)
    assert costs.rows_worth(SMALL, 16) == 2


def test_the_first_step_of_a_model_that_draws_large_pictures_is_small() -> None:
    costs, large = Costs(), replace(SMALL, latent_shape=(4, 96, 96))
    assert costs.rows_worth(large, 16) == 1
    costs.record_step(large, 2, 20.0)
    assert costs.rows_worth(large, 16) == 6, "no more than a minute allows"
    costs.record_step(large, 2, 0.2)
    assert costs.rows_worth(large, 16) == 16


def test_shapes_are_forgotten_when_there_are_very_many() -> None:
    costs = Costs()
    for number in range(2 * MAX_SHAPES):
        costs.record_step(replace(SMALL, loras=(LoraUse("ink", number / 1000),)), 2, 1.0 + number)
    assert len(costs._steps) == MAX_SHAPES
