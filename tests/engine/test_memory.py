"""Batches kept within the memory for drawing, and pictures refused that would never fit. The budget is simulated."""

from __future__ import annotations

from dataclasses import replace

import torch

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentDone
from safelight.engine.memory import DECODE_BYTES, ROW_BYTES, MemoryPlan, watch_peak
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign, code_of, run_out
from .test_scheduler import LARGE, SMALL

CAT = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=3, guidance_scale=2.0)
PIXELS = 64 * 64


def test_without_a_budget_everything_is_tried() -> None:
    plan = MemoryPlan()
    assert (plan.max_rows(SMALL, 10**9), plan.max_pixels) == (None, None)


def test_an_estimate_stands_until_a_step_was_measured() -> None:
    plan = MemoryPlan(8 * PIXELS * ROW_BYTES)
    assert plan.max_rows(SMALL, PIXELS) == 8
    plan.record(SMALL, 2, 4 * PIXELS * ROW_BYTES)
    plan.record(SMALL, 4, 4 * PIXELS * ROW_BYTES)
    assert plan.max_rows(SMALL, PIXELS) == 4, "by the worst that was seen"
    assert plan.max_rows(LARGE, PIXELS) == 8, "of another shape nothing was seen"


def test_a_picture_that_cannot_be_decoded_has_no_room_at_all() -> None:
    plan = MemoryPlan(PIXELS * DECODE_BYTES)
    assert plan.max_pixels == PIXELS
    assert plan.max_rows(SMALL, PIXELS) == 8
    assert plan.max_rows(SMALL, PIXELS + 8) == 0


def test_a_model_in_float32_takes_twice_as_much() -> None:
    plan = MemoryPlan(8 * PIXELS * DECODE_BYTES)
    plan.expect(SMALL.model_key, 4)
    assert plan.max_pixels == 4 * PIXELS
    assert plan.max_rows(SMALL, PIXELS) == 8 * DECODE_BYTES // (2 * ROW_BYTES)
    assert plan.max_rows(SMALL, 4 * PIXELS + 8) == 0
    plan.record(SMALL, 1, 8 * PIXELS * DECODE_BYTES)
    assert plan.max_rows(SMALL, PIXELS) == 1
    plan.forget(SMALL.model_key)
    assert plan.max_pixels == 8 * PIXELS
    assert plan.max_rows(SMALL, PIXELS) == 8 * DECODE_BYTES // ROW_BYTES, "what was measured went with the model"


def test_batches_stay_within_the_budget() -> None:
    model = FakeModel()
    engine = Engine(drawing_bytes=PIXELS * DECODE_BYTES)
    engine.load("fake@1", model)
    for number in range(6):
        engine.submit(assign(str(number), replace(CAT, prompt=f"cat {number}")))
    told = run_out(engine)
    assert all(isinstance(events[-1], AssignmentDone) for events in told.values())
    assert max(model.rows) == DECODE_BYTES // ROW_BYTES


def test_a_picture_that_can_never_fit_fails_at_once_and_no_other() -> None:
    model = FakeModel()
    engine = Engine(drawing_bytes=PIXELS * DECODE_BYTES)
    engine.load("fake@1", model)
    engine.submit(assign("large", replace(CAT, height=128)))
    engine.submit(assign("small", CAT))
    told = run_out(engine)
    assert code_of(told["large"]) == "out_of_memory" and len(told["large"]) == 1
    assert isinstance(told["small"][-1], AssignmentDone)


def test_a_measured_step_changes_how_many_travel_together() -> None:
    engine = Engine(drawing_bytes=PIXELS * DECODE_BYTES)
    engine.load("fake@1", model := FakeModel())
    engine.submit(assign("first", CAT))
    [task] = engine._runs["first"].tasks
    engine._memory.record(task.key, 1, 4 * PIXELS * ROW_BYTES)
    for number in range(4):
        engine.submit(assign(str(number), CAT))
    run_out(engine)
    assert max(model.rows) == 2


def test_a_cpu_counts_no_memory() -> None:
    with watch_peak(torch.device("cpu")) as peak:
        torch.zeros(1000)
    assert peak.num_bytes is None
