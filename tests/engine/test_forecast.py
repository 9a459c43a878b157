"""The time left of each run: the queue played forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from safelight.engine.costs import Costs
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentDone, Pixels, StepDone
from safelight.engine.forecast import FRESH_SECONDS, Forecast, play_forward
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import ImageTask
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .drawing import assign
from .test_scheduler import LARGE, SMALL, make_task, scheduler_of


def costs_of(*, decode_seconds: float = 0.5) -> Costs:
    costs = Costs()
    costs.record_step(SMALL, 2, 1.0)
    costs.record_step(SMALL, 4, 2.0)
    costs.record_decode(SMALL, decode_seconds)
    return costs


def live_through(scheduler: Scheduler, costs: Costs) -> dict[str, float]:
    """When each run is really finished."""
    seconds, finished = 0.0, {}
    while (batch := scheduler.choose()) is not None:
        step = costs.step_seconds(batch.key, batch.num_rows)
        assert step is not None
        seconds += step
        scheduler.charge(batch, step)
        for task in batch.tasks:
            task.cursor += 1
            if task.num_steps_left == 0:
                seconds += costs.decode_seconds(task.key)
                finished[task.run.run_id] = seconds
                scheduler.remove(task)
    return finished


def test_images_that_share_a_batch_share_its_time() -> None:
    costs, first, second = costs_of(), make_task("a"), make_task("b")
    assert play_forward(scheduler_of(first, costs=costs), costs) == {first.run: pytest.approx(5.5)}
    together = play_forward(scheduler_of(first, second, costs=costs), costs)
    assert together == {first.run: pytest.approx(10.5), second.run: pytest.approx(11.0)}
    one_by_one = play_forward(scheduler_of(first, second, max_rows=2, costs=costs), costs)
    assert one_by_one == {first.run: pytest.approx(5.5), second.run: pytest.approx(11.0)}


def mixed_load() -> list[ImageTask]:
    return [
        make_task(
            f"{key_id}{number}", key=LARGE if number % 3 == 2 else SMALL, key_id=key_id, num_steps=10 + 7 * number
        )
        for key_id, many in (("x", 6), ("y", 2))
        for number in range(many)
    ]


def test_the_forecast_of_a_mixed_load_is_near_what_happens() -> None:
    costs = costs_of()
    costs.record_step(LARGE, 2, 4.0)
    scheduler = scheduler_of(*mixed_load(), max_rows=4, costs=costs)
    told = {run.run_id: seconds for run, seconds in play_forward(scheduler, costs).items()}
    happened = live_through(scheduler, costs)
    assert told.keys() == happened.keys()
    errors = sorted(abs(told[name] / happened[name] - 1.0) for name in told)
    assert errors[len(errors) // 2] < 0.1, errors


def test_a_shape_never_measured_is_judged_by_its_model_s_others_and_without_any_has_no_time_left() -> None:
    known, larger, unknown = (
        make_task("a"),
        make_task("b", key=LARGE),
        make_task("c", key=replace(SMALL, model_key="n@1")),
    )
    costs = costs_of()
    left = play_forward(scheduler_of(known, larger, unknown, costs=costs), costs)
    assert left == {known.run: pytest.approx(5.5), larger.run: pytest.approx(4 * 5.5 + 5.5)}


def test_a_forecast_is_told_on_and_made_anew_when_images_come() -> None:
    costs, first, second = costs_of(), make_task("a"), make_task("b")
    scheduler = scheduler_of(first, costs=costs)
    forecast = Forecast(scheduler, costs)
    assert forecast.seconds_left(100.0)[first.run] == pytest.approx(5.5)
    assert forecast.is_new
    later = 100.0 + FRESH_SECONDS / 2
    assert forecast.seconds_left(later)[first.run] == pytest.approx(5.5 - FRESH_SECONDS / 2)
    assert not forecast.is_new
    scheduler.admit(second)
    assert set(forecast.seconds_left(later)) == {first.run, second.run}
    assert forecast.is_new


def test_pictures_that_wait_for_the_decoder_come_before_what_is_drawn() -> None:
    costs, drawn, waiting = costs_of(), make_task("a"), make_task("b")
    left = play_forward(scheduler_of(drawn, costs=costs), costs, [waiting])
    assert left == {waiting.run: pytest.approx(0.5), drawn.run: pytest.approx(0.5 + 5.5)}


def test_every_announcement_of_known_work_comes_true() -> None:
    clock = Clock(now=0.0)
    engine = Engine(now=clock)
    engine.load("fake@1", Timely(clock))
    short = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=20, guidance_scale=1.0)
    for number in range(2):
        # The second time what a step and a decode take is known.
        for run_id, num_steps in (("short", 20), ("long", 60)):
            engine.submit(assign(f"{run_id}{number}", replace(short, num_inference_steps=num_steps)))
        told: list[tuple[str, float, float]] = []
        ended: dict[str, float] = {}
        while engine.has_work:
            for run_id, event in engine.step():
                if isinstance(event, StepDone):
                    assert event.eta_seconds is not None
                    told.append((run_id, clock.now, event.eta_seconds))
                elif isinstance(event, AssignmentDone):
                    ended[run_id] = clock.now
    assert len(told) == 20 + 60
    for run_id, at, seconds in told:
        assert seconds == pytest.approx(ended[run_id] - at, abs=0.02), (run_id, at)


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


class Timely(FakeModel):
    """A step takes 0.01 s by the clock, a decode 0.4."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        self._clock.now += 0.01
        return super().predict(x, sigma, timestep, conditioning)

    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        self._clock.now += 0.4
        return super().decode(latent, height, width)
