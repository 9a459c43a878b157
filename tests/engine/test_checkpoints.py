"""Half-drawn runs, saved and gone on with. FakeModel's data has a deviation here: a wrong step would
show in the picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from safelight.engine.checkpoints import Checkpoint, pack, unpack
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentDone, CheckpointTaken, EngineEvent, ImageReady, StepDone
from safelight.engine.tasks import Assignment, ImageTask
from safelight.runs import RunParams, SamplerName
from safelight.testing import FakeModel

from .drawing import assign, pictures_of, run_out

CAT = RunParams(prompt="a cat", height=64, width=72, num_inference_steps=7, guidance_scale=3.0, num_images_per_prompt=2)


class Clock:
    """Time that passes by the step: a second for each question."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def make_engine(model: FakeModel | None = None, *, checkpoint_seconds: float | None = 0.5) -> Engine:
    engine = Engine(checkpoint_seconds=checkpoint_seconds, now=Clock())
    engine.load("fake@1", model or FakeModel(std=0.5))
    return engine


def draw(engine: Engine, assignment: Assignment) -> list[EngineEvent]:
    engine.submit(assignment)
    return run_out(engine)[assignment.run_id]


def taken(events: list[EngineEvent]) -> list[Checkpoint]:
    return [event.checkpoint for event in events if isinstance(event, CheckpointTaken)]


def through_bytes(checkpoint: Checkpoint) -> Checkpoint:
    unpacked = unpack(pack(checkpoint))
    assert unpacked is not None
    return unpacked


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_a_run_that_goes_on_ends_in_the_very_pixels_of_one_that_was_left_alone(sampler: SamplerName) -> None:
    params = replace(CAT, sampler=sampler)
    undisturbed = draw(make_engine(), assign("r", params))
    [num_calls] = {event.steps_total // 2 for event in undisturbed if isinstance(event, StepDone)}
    for checkpoint in taken(undisturbed)[::3]:
        model = FakeModel(std=0.5)
        resumed = draw(make_engine(model), replace(assign("r", params), checkpoint=through_bytes(checkpoint)))
        cursors = {image.cursor for image in checkpoint.images}
        assert model.calls["predict"] == num_calls - min(cursors), "no step is repeated"
        for index, picture in pictures_of(resumed).items():
            assert np.array_equal(picture, pictures_of(undisturbed)[index])


def test_a_checkpoint_that_finds_no_memory_leaves_nothing_of_its_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = taken(draw(make_engine(), assign("r", CAT)))[3]
    engine = make_engine()

    def take_up(self: Checkpoint, task: ImageTask) -> None:
        if task.index == 1:
            raise MemoryError

    monkeypatch.setattr(Checkpoint, "take_up", take_up)
    with pytest.raises(MemoryError):
        engine.submit(replace(assign("r", CAT), checkpoint=checkpoint))
    assert not engine.has_work
    assert isinstance(draw(engine, assign("r", CAT))[-1], AssignmentDone)


def test_what_a_run_had_cost_before_counts_with_what_it_costs_now() -> None:
    checkpoint = through_bytes(taken(draw(make_engine(), assign("r", CAT)))[-1])
    done = draw(make_engine(), replace(assign("r", CAT), checkpoint=checkpoint))[-1]
    assert isinstance(done, AssignmentDone)
    run_time, device_time = checkpoint.spent
    assert 0 < 1000 * run_time < done.run_time_ms and 0 < 1000 * device_time < done.device_ms


def test_a_checkpoint_of_before_times_were_kept_is_read() -> None:
    arrays = safetensors.numpy.load(pack(taken(draw(make_engine(), assign("r", CAT)))[0]))
    del arrays["spent"]
    checkpoint = unpack(safetensors.numpy.save(arrays))
    assert checkpoint is not None and checkpoint.spent == (0.0, 0.0)


def test_progress_goes_on_where_it_was() -> None:
    checkpoint = taken(draw(make_engine(), assign("r", CAT)))[3]
    resumed = draw(make_engine(), replace(assign("r", CAT), checkpoint=checkpoint))
    done = [event.steps_done for event in resumed if isinstance(event, StepDone)]
    assert done[0] == sum(image.cursor for image in checkpoint.images) + 2 and done[-1] == 14


def test_pictures_already_kept_are_left_alone_and_finished_latents_are_only_decoded() -> None:
    model = FakeModel(std=0.5)
    last = taken(draw(make_engine(), assign("r", CAT)))[-1]
    assert [image.cursor for image in last.images] == [7, 7]
    resumed = draw(make_engine(model), replace(assign("r", CAT, indices=(1,)), checkpoint=last))
    assert [event.index for event in resumed if isinstance(event, ImageReady)] == [1]
    assert isinstance(resumed[-1], AssignmentDone)
    assert model.calls["predict"] == 0


def test_checkpoints_come_at_their_interval_and_never_in_a_short_run() -> None:
    # The clock of these tests moves three seconds a step.
    assert len(taken(draw(make_engine(checkpoint_seconds=9.0), assign("r", CAT)))) == 2
    assert taken(draw(make_engine(checkpoint_seconds=60.0), assign("r", CAT))) == []
    assert taken(draw(make_engine(checkpoint_seconds=None), assign("r", CAT))) == []


def test_a_run_about_to_be_given_back_is_saved_as_it_is() -> None:
    engine = make_engine(checkpoint_seconds=None)
    engine.submit(assign("r", CAT))
    assert engine.checkpoint("r") is None, "nothing has begun"
    engine.step()
    engine.step()
    saved = engine.checkpoint("r")
    assert saved is not None and [image.cursor for image in saved.images] == [2, 2]
    assert engine.checkpoint("never") is None


def test_a_checkpoint_of_another_way_is_not_used() -> None:
    checkpoint = taken(draw(make_engine(), assign("r", CAT)))[3]
    for other in (replace(CAT, num_inference_steps=9), replace(CAT, height=128)):
        model = FakeModel(std=0.5)
        events = draw(make_engine(model), replace(assign("r", other), checkpoint=checkpoint))
        assert isinstance(events[-1], AssignmentDone)
        assert model.calls["predict"] == other.num_inference_steps, "from the beginning"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x80\x04N.", bytes(64)])
def test_what_is_no_checkpoint_is_none(damage: bytes) -> None:
    assert unpack(damage) is None


def test_a_checkpoint_that_lacks_an_array_is_none() -> None:
    checkpoint = taken(draw(make_engine(), assign("r", CAT)))[0]
    whole = pack(checkpoint)
    assert unpack(whole) is not None
    assert unpack(whole.replace(b'"1.0"', b'"9.0"')) is None
