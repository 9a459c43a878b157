"""The step loop over FakeModel, whose answers are exact."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from safelight.engine.beginnings import begin
from safelight.engine.checkpoints import Snapshot
from safelight.engine.engine import Engine
from safelight.engine.events import (
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    EncodedPrompt,
    ImageReady,
    StepDone,
)
from safelight.engine.prompts import PromptCache
from safelight.engine.samplers import step_table
from safelight.engine.tasks import ImageTask
from safelight.runs import LoraUse, RunParams, SamplerName
from safelight.testing import FakeModel, colour_of, value_of

from .drawing import assign, code_of, pictures_of, run_out

CAT = RunParams(prompt="a cat", height=64, width=72, num_inference_steps=5, guidance_scale=1.0)


def engine_with(model: FakeModel, **settings: int) -> Engine:
    engine = Engine(**settings)
    engine.load("fake@1", model)
    return engine


def draw(model: FakeModel, **asked: RunParams) -> dict[str, list[object]]:
    engine = engine_with(model)
    for run_id, params in asked.items():
        engine.submit(assign(run_id, params))
    return run_out(engine)  # type: ignore[return-value]


def test_a_run_is_told_all_that_happens_in_order() -> None:
    events = draw(FakeModel(), r=replace(CAT, num_images_per_prompt=2, seed=40))["r"]
    assert events[0] == EncodedPrompt((), "torch")
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.steps_done for step in steps] == [2, 4, 6, 8, 10]
    assert all(step.steps_total == 10 and step.eta_seconds is not None for step in steps)
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert [(event.index, event.seed) for event in ready] == [(0, 40), (1, 41)]
    assert isinstance(events[-1], AssignmentDone) and events[-1].run_time_ms > 0
    assert len(events) == 1 + 5 + 2 + 1


def test_rows_with_nothing_in_common_but_their_shape_share_one_pass() -> None:
    model = FakeModel()
    asked = {
        f"r{number}": replace(CAT, prompt=f"cat {number}", sampler=sampler, num_inference_steps=3 + number, seed=number)
        for number, sampler in enumerate(SamplerName)
    }
    told = draw(model, **asked)
    longest = max(len(step_table(each.sampler, each.num_inference_steps, model.schedule)) for each in asked.values())
    assert model.calls["predict"] == longest, "as many passes as the longest run has calls"
    for run_id, params in asked.items():
        [picture] = pictures_of(told[run_id]).values()  # type: ignore[arg-type]
        assert picture.shape == (64, 72, 3) and picture.dtype == np.uint8
        assert set(picture.flat) == {colour_of(params.prompt)}


def test_guidance_is_each_rows_own() -> None:
    model = FakeModel()
    scales = {"off": 1.0, "low": 0.0, "weak": 1.5, "strong": 2.0}
    params = {name: replace(CAT, guidance_scale=scale, negative_prompt="dog") for name, scale in scales.items()}
    told = draw(model, **params)
    assert max(model.rows) == 6, "two rows for a guided image, one for an unguided"
    cat, dog = value_of("a cat"), value_of("dog")
    for name, scale in scales.items():
        value = dog + scale * (cat - dog) if scale > 1 else cat
        expected = np.clip(round((value + 1) * 127.5), 0, 255)
        [picture] = pictures_of(told[name]).values()  # type: ignore[arg-type]
        assert np.abs(picture.astype(int) - expected).max() <= 1, name


def test_a_row_beside_others_moves_as_if_alone() -> None:
    """Data with a deviation: every wrong sigma, timestep or prompt would show."""
    asked = {
        f"r{number}": replace(
            CAT,
            prompt=f"cat {number}",
            negative_prompt=f"dog {number}",
            guidance_scale=[1.0, 1.3][number % 2],
            sampler=list(SamplerName)[number % 4],
            num_inference_steps=4 + number,
            seed=number,
        )
        for number in range(8)
    }
    together = draw(FakeModel(std=0.5), **asked)
    for run_id, params in asked.items():
        alone = draw(FakeModel(std=0.5), **{run_id: params})
        [beside], [by_itself] = pictures_of(together[run_id]).values(), pictures_of(alone[run_id]).values()  # type: ignore[arg-type]
        assert np.abs(beside.astype(int) - by_itself.astype(int)).max() <= 1
        assert by_itself.std() > 5


def test_a_deterministic_run_does_not_feel_how_many_travel_beside_it() -> None:
    class Crowded(FakeModel):
        """Rounds as batches of another size do, and much louder."""

        def predict(
            self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
        ) -> torch.Tensor:
            return super().predict(x, sigma, timestep, conditioning) + 0.05 * len(x)

    plain = replace(CAT, num_images_per_prompt=2)
    exact = replace(plain, deterministic=True)
    alone = pictures_of(draw(Crowded(), plain=plain)["plain"])
    exact_alone = pictures_of(draw(Crowded(), exact=exact)["exact"])
    others = {f"r{number}": replace(CAT, prompt=f"cat {number}") for number in range(4)}
    together = draw(Crowded(), plain=plain, exact=exact, **others)
    assert all((pictures_of(together["exact"])[index] == exact_alone[index]).all() for index in (0, 1))
    assert any((pictures_of(together["plain"])[index] != alone[index]).any() for index in (0, 1))


def test_a_run_that_is_too_late_is_not_begun_and_one_that_has_begun_goes_on() -> None:
    seconds = iter(range(10_000))
    model = FakeModel()
    engine = Engine(max_batch_rows=2, now=lambda: float(next(seconds)))
    engine.load("fake@1", model)
    engine.submit(replace(assign("begun", CAT), deadline_seconds=3.0))
    engine.step()
    engine.submit(replace(assign("late", replace(CAT, prompt="a dog")), deadline_seconds=0.5))
    told = run_out(engine)
    assert code_of(told["late"]) == "deadline_missed"
    assert isinstance(told["begun"][-1], AssignmentDone)
    assert model.calls["encode"] == 1, "nothing is worked out for a run that is too late"


def test_a_newcomer_joins_between_two_steps() -> None:
    model = FakeModel()
    engine = engine_with(model)
    engine.submit(assign("early", replace(CAT, num_inference_steps=10)))

    def join(step: int) -> None:
        if step == 4:
            engine.submit(assign("late", replace(CAT, num_inference_steps=3)))

    told = run_out(engine, between=join)
    assert model.rows == [1, 1, 1, 1, 2, 2, 2, 1, 1, 1]
    assert set(told) == {"early", "late"}


def test_a_cancelled_run_is_out_before_the_next_step_and_the_others_go_on() -> None:
    model = FakeModel()
    engine = engine_with(model)
    for run_id in ("stays", "goes"):
        engine.submit(assign(run_id, replace(CAT, num_images_per_prompt=2)))

    told = run_out(engine, between=lambda step: engine.cancel("goes") if step == 2 else None)
    assert model.rows == [4, 4, 2, 2, 2]
    assert isinstance(told["goes"][-1], AssignmentCancelled)
    assert len([event for event in told["goes"] if isinstance(event, StepDone)]) == 2
    assert len(pictures_of(told["stays"])) == 2


def test_cancelling_what_has_ended_or_never_was_does_nothing() -> None:
    engine = engine_with(FakeModel())
    engine.submit(assign("r", CAT))
    told = run_out(engine)
    engine.cancel("r")
    engine.cancel("never")
    assert not engine.has_work and len(told["r"]) == 8


def test_only_the_images_still_missing_are_drawn_and_progress_counts_the_others() -> None:
    engine = engine_with(FakeModel())
    engine.submit(assign("r", replace(CAT, num_images_per_prompt=3, seed=7), indices=(2,)))
    events = run_out(engine)["r"]
    assert [step.steps_done for step in events if isinstance(step, StepDone)] == [11, 12, 13, 14, 15]
    [ready] = [event for event in events if isinstance(event, ImageReady)]
    assert (ready.index, ready.seed) == (2, 9)


def test_no_image_missing_ends_at_once() -> None:
    engine = engine_with(FakeModel())
    engine.submit(assign("r", CAT, indices=()))
    assert run_out(engine)["r"] == [AssignmentDone(0.0)]


def test_a_finished_picture_is_decoded_alone_and_the_others_go_on_between() -> None:
    model = FakeModel()
    engine = engine_with(model)
    engine.submit(assign("short", replace(CAT, num_images_per_prompt=3, num_inference_steps=1)))
    engine.submit(assign("long", replace(CAT, num_inference_steps=6)))
    kinds = []
    while engine.has_work:
        kinds.append([type(event).__name__ for _, event in engine.step()].count("ImageReady"))
    assert kinds == [0, 1, 0, 1, 0, 1, 0, 0, 0, 1]


def test_a_prompt_is_encoded_once_for_all_who_share_it() -> None:
    model = FakeModel()
    guided = replace(CAT, guidance_scale=7.5, num_images_per_prompt=2)
    draw(model, a=guided, b=guided, c=replace(guided, prompt="a dog"))
    assert model.calls["encode"] == 3, "cat, dog, and the empty negative"


def test_the_prompt_cache_forgets_the_least_recently_used_but_never_the_empty() -> None:
    model = FakeModel()
    engine = engine_with(model, prompt_cache_size=2)
    for number, prompt in enumerate(["a", "b", "a", "c", "a", "b"]):
        engine.submit(assign(str(number), replace(CAT, prompt=prompt, guidance_scale=2.0)))
        run_out(engine)
    assert model.calls["encode"] == 5, "empty, a, b, c, and b again"


def test_the_empty_prompt_of_a_lora_is_forgotten_like_any_other() -> None:
    cache = PromptCache(size=2)
    for number in range(5):
        cache.encode("fake@1", FakeModel(), "", loras=(LoraUse("ink", number / 10),))
    assert len(cache._kept) + len(cache._empty) == 2


def test_a_long_prompt_takes_the_room_of_its_windows() -> None:
    model, cache = FakeModel(), PromptCache(size=4)
    for text, num_windows in (("a", 1), ("long", 3), ("", 3), ("longer", 9)):
        cache.encode("fake@1", model, text, num_windows=num_windows)
    num_encoded = model.calls["encode"]
    cache.encode("fake@1", model, "b", num_windows=1)
    cache.encode("fake@1", model, "b", num_windows=1)
    assert model.calls["encode"] == num_encoded + 1
    assert sum(asked[4] for asked in (*cache._kept, *cache._empty)) <= 4


def test_text_beyond_the_window_is_reported_word_for_word() -> None:
    long = "one two three four five six seven eight Nine TEN"
    guided = replace(CAT, prompt=long, negative_prompt=long + " eleven", guidance_scale=2.0)
    events = draw(FakeModel(), guided=guided, unguided=replace(guided, guidance_scale=1.0))
    [encoded] = [event for event in events["guided"] if isinstance(event, EncodedPrompt)]
    assert [warning.split(": ", 1)[1] for warning in encoded.warnings] == ["Nine TEN", "Nine TEN eleven"]
    assert encoded.warnings[0].startswith("prompt is longer") and "negative_prompt" in encoded.warnings[1]
    [encoded] = [event for event in events["unguided"] if isinstance(event, EncodedPrompt)]
    assert len(encoded.warnings) == 1, "the negative prompt of an unguided run is not read at all"


FAULTS = {"poison": "error", "void": "nan", "huge": "memory", "smudge": "decode"}


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("poison", "engine_failed"),
        ("void", "non_finite_latent"),
        ("huge", "out_of_memory"),
        ("smudge", "decode_failed"),
    ],
)
def test_a_bad_row_fails_alone_and_its_neighbours_get_their_pictures(prompt: str, code: str) -> None:
    asked = {f"r{number}": replace(CAT, prompt=f"cat {number}", num_images_per_prompt=2) for number in range(3)}
    told = draw(FakeModel(faults=FAULTS), bad=replace(CAT, prompt=prompt), **asked)
    assert code_of(told["bad"]) == code  # type: ignore[arg-type]
    for run_id, params in asked.items():
        assert isinstance(told[run_id][-1], AssignmentDone)
        for picture in pictures_of(told[run_id]).values():  # type: ignore[arg-type]
            assert set(picture.flat) == {colour_of(params.prompt)}


def test_a_run_that_finds_no_memory_to_begin_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_unless_bad(task: ImageTask) -> None:
        if task.run.run_id == "bad":
            raise MemoryError
        begin(task)

    monkeypatch.setattr("safelight.engine.engine.begin", begin_unless_bad)
    told = draw(FakeModel(), bad=CAT, good=CAT, better=CAT)
    assert code_of(told["bad"]) == "out_of_memory"
    assert all(isinstance(told[run_id][-1], AssignmentDone) for run_id in ("good", "better"))


def test_after_a_failure_the_survivors_travel_together_again() -> None:
    model = FakeModel(faults=FAULTS)
    draw(model, a=CAT, bad=replace(CAT, prompt="poison"), b=CAT)
    assert model.rows == [3, 1, 1, 1, 2, 2, 2, 2]


def test_a_batch_too_large_for_the_memory_is_drawn_in_smaller_ones() -> None:
    model = FakeModel(max_rows=3)
    told = draw(model, **{f"r{number}": replace(CAT, guidance_scale=2.0) for number in range(6)})
    assert all(isinstance(events[-1], AssignmentDone) for events in told.values())
    assert model.rows[:3] == [12, 6, 2]


def test_a_prompt_that_cannot_be_encoded_fails_its_run_only() -> None:
    class Illiterate(FakeModel):
        def encode(self, text, **asked):  # type: ignore[no-untyped-def]
            if text == "?":
                raise ValueError("cannot read this")
            return super().encode(text)

    told = draw(Illiterate(), bad=replace(CAT, prompt="?"), good=CAT)
    assert code_of(told["bad"]) == "encode_failed"  # type: ignore[arg-type]
    assert isinstance(told["good"][-1], AssignmentDone)


def test_every_error_names_a_remedy() -> None:
    for prompt in FAULTS:
        end = draw(FakeModel(faults=FAULTS), bad=replace(CAT, prompt=prompt))["bad"][-1]
        assert isinstance(end, AssignmentFailed)
        assert ";" in end.error.message and end.error.message[0].islower()


def test_a_model_that_is_not_loaded_is_answered_not_waited_for() -> None:
    engine = engine_with(FakeModel())
    engine.submit(assign("r", CAT, model_key="other@1"))
    assert code_of(run_out(engine)["r"]) == "model_not_loaded"


def test_unloading_a_model_ends_its_runs_and_leaves_the_others() -> None:
    engine = engine_with(FakeModel())
    engine.load("other@1", FakeModel())
    engine.submit(assign("r", CAT))
    engine.submit(assign("s", CAT, model_key="other@1"))
    told = run_out(engine, between=lambda step: engine.unload("other@1") if step == 1 else None)
    assert code_of(told["s"]) == "model_unloaded"
    assert isinstance(told["r"][-1], AssignmentDone)
    assert engine.is_loaded("fake@1") and not engine.is_loaded("other@1")


class Hoarder(FakeModel):
    """One of its methods has no memory until it has released some, once."""

    def __init__(self, starving: str) -> None:
        super().__init__()
        self._starving = starving
        self.has_hoard = True

    def __getattribute__(self, name: str) -> object:
        if name != "_starving" and name == self._starving and self.has_hoard:
            raise MemoryError
        return super().__getattribute__(name)

    def release(self) -> bool:
        had, self.has_hoard = self.has_hoard, False
        return had


@pytest.mark.parametrize("starving", ["encode", "predict", "decode"])
def test_where_memory_is_short_models_release_theirs_before_a_run_fails(starving: str) -> None:
    model = Hoarder(starving)
    assert isinstance(draw(model, r=CAT)["r"][-1], AssignmentDone)
    assert not model.has_hoard and set(model.rows) == {1}


def test_a_model_that_is_unloaded_releases_its_memory_and_checkpoints_under_way_do_not_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Snapshot, "is_ready", False)
    model = Hoarder("nothing")
    engine = Engine(checkpoint_seconds=0.0)
    engine.load("fake@1", model)
    engine.submit(assign("r", CAT))
    for _ in range(3):
        engine.step()
    engine.unload("fake@1")
    engine.take_events()
    assert not model.has_hoard
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_run_time_is_the_time_of_the_passes_a_run_took_part_in() -> None:
    ticks = iter(range(10_000))
    engine = Engine(now=lambda: float(next(ticks)))
    engine.load("fake@1", FakeModel())
    engine.submit(assign("r", CAT))
    end = run_out(engine)["r"][-1]
    assert isinstance(end, AssignmentDone)
    assert end.run_time_ms == 7000.0, "one tick for the prompt, five steps, one decode"


def test_room_is_counted_in_images() -> None:
    engine = engine_with(FakeModel(), max_resident_images=3)
    engine.submit(assign("r", replace(CAT, num_images_per_prompt=2)))
    assert engine.num_free_images == 1
    run_out(engine)
    assert engine.num_free_images == 3
