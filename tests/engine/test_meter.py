"""What the engine counts about itself: sums that fit together, and device time that is shared and not counted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safelight.engine.events import AssignmentDone
from safelight.engine.meter import Meter
from safelight.metrics import STEP_BUCKETS
from safelight.testing import FakeModel

from .drawing import assign, run_out
from .test_engine import CAT, engine_with


def test_runs_of_one_batch_share_the_time_of_the_device() -> None:
    engine = engine_with(FakeModel(step_seconds=0.01, decode_seconds=0.005), max_batch_rows=8)
    engine.submit(assign("plain", CAT))
    engine.submit(assign("guided", replace(CAT, guidance_scale=7.5, num_images_per_prompt=2)))
    ends = {run_id: events[-1] for run_id, events in run_out(engine).items()}
    assert all(isinstance(end, AssignmentDone) for end in ends.values())
    assert sum(end.device_ms for end in ends.values()) == pytest.approx(1000 * engine.figures.busy_seconds)
    assert ends["plain"].device_ms < ends["guided"].device_ms < ends["guided"].run_time_ms


def test_rows_and_the_places_for_them_tell_the_batch_fill() -> None:
    engine = engine_with(FakeModel(), max_batch_rows=8)
    engine.submit(assign("r", replace(CAT, num_images_per_prompt=2)))
    assert engine.figures.num_resident_images == 2
    run_out(engine)
    figures = engine.figures
    assert (figures.num_rows, figures.num_places) == (2 * 5, 8 * 5)
    assert (figures.num_decoded, figures.num_resident_images) == (2, 0)
    assert sum(figures.step_counts) == 5
    assert figures.busy_seconds >= figures.step_seconds + figures.decode_seconds > 0


def test_a_step_is_counted_in_the_bucket_that_ends_at_it_or_above() -> None:
    meter = Meter()
    for seconds in (0.0, STEP_BUCKETS[0], STEP_BUCKETS[0] + 1e-6, STEP_BUCKETS[-1], STEP_BUCKETS[-1] + 1):
        meter.record_step(seconds, num_rows=3, num_places=2)
    counts = meter.figures(num_resident_images=0).step_counts
    assert (counts[0], counts[1], counts[-2], counts[-1], sum(counts)) == (2, 1, 1, 1, 5)
    assert meter.figures(num_resident_images=0).num_places == 15, "a batch is never fuller than full"
