"""Steps of a device that works on after the call: who waits for it, and what is paid for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from safelight.engine.accounts import Accounts, Mark
from safelight.engine.costs import Costs
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentCancelled, AssignmentDone, AssignmentFailed
from safelight.engine.meter import Meter
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import Assignment, Batch
from safelight.runs import RunParams
from safelight.testing import FakeModel

from .test_scheduler import SMALL, make_task


@dataclass
class Device:
    """Does what it is given, one after the other; `now` is the host's clock."""

    now: float = 0.0
    done_at: float = 0.0

    def work(self, seconds: float) -> None:
        self.done_at = max(self.now, self.done_at) + seconds

    def mark(self, device: torch.device) -> DeviceMark:
        return DeviceMark(self, max(self.now, self.done_at))


@dataclass
class DeviceMark:
    device: Device
    at: float

    @property
    def is_past(self) -> bool:
        return self.at <= self.device.now

    def wait(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, DeviceMark) and self.is_past and earlier.is_past
        return self.at - earlier.at


@dataclass
class Books:
    """Accounts of a device, and a batch of one guided image."""

    device: Device = field(default_factory=Device)
    costs: Costs = field(default_factory=Costs)
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        task = make_task("one")
        task.run.model = FakeModel()
        self.batch = Batch(SMALL, (task,))
        scheduler = Scheduler(max_rows=16, costs=self.costs)
        self.accounts = Accounts(scheduler, self.costs, self.meter, now=lambda: self.device.now, mark=self.device.mark)

    def step(self, seconds: float, launch_seconds: float = 0.1) -> None:
        with self.accounts.step(self.batch):
            self.device.work(seconds)
            self.device.now += launch_seconds
        self.accounts.settle(num_running=1)


def test_one_step_is_launched_ahead_of_the_one_that_runs_and_no_more() -> None:
    books = Books()
    books.step(2.0)
    assert books.device.now == pytest.approx(0.1), "nobody waits for the first"
    for number in range(1, 4):
        books.step(2.0)
        assert books.device.now == pytest.approx(2.0 * number), "until the one before has ended"
        assert books.device.done_at == pytest.approx(2.0 * (number + 1)), "the device has never waited"


def test_a_step_costs_what_the_device_took_and_not_what_its_launch_took() -> None:
    books = Books()
    for _ in range(3):
        books.step(2.0)
    assert books.costs.step_seconds(SMALL, 2) == pytest.approx(2.0)
    [task] = books.batch.tasks
    assert task.run.device_time == task.run.run_time == pytest.approx(4.0), "the third still runs"
    books.accounts.settle()
    assert task.run.device_time == pytest.approx(6.0)
    assert books.meter.figures(num_resident_images=0).busy_seconds == pytest.approx(6.0)


def test_a_step_that_has_ended_is_paid_for_without_waiting() -> None:
    books = Books()
    books.step(0.05, launch_seconds=0.3)
    assert books.costs.step_seconds(SMALL, 2) == pytest.approx(0.3), "the device waited for its launch"
    assert books.device.now == pytest.approx(0.3)


def test_a_step_that_fails_is_paid_for_and_is_no_measure() -> None:
    books = Books()
    with pytest.raises(ArithmeticError), books.accounts.step(books.batch):
        books.device.work(0.5)
        raise ArithmeticError
    books.accounts.settle()
    assert books.batch.tasks[0].run.run_time == pytest.approx(0.5)
    assert books.costs.step_seconds(SMALL, 2) is None


class ModelOn(FakeModel):
    """Each of its predictions takes the device two seconds, and the host none."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._works_on = device

    def predict(self, *inputs: torch.Tensor) -> torch.Tensor:
        self._works_on.work(2.0)
        return super().predict(*inputs)


def test_a_run_that_is_done_has_paid_for_all_its_steps() -> None:
    device = Device()
    engine = Engine(now=lambda: device.now)
    engine._accounts._mark = device.mark
    engine.load("model", ModelOn(device))
    params = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=4)
    engine.submit(Assignment("one", "model", params, (0,)))
    told = [event for _ in range(5) for _, event in engine.step()]
    [done] = [event for event in told if isinstance(event, AssignmentDone)]
    assert done.device_ms == pytest.approx(8000.0)
    assert engine.figures.step_seconds == pytest.approx(8.0)


@pytest.mark.parametrize("is_failed", [False, True])
def test_a_run_that_ends_early_has_paid_for_the_steps_that_were_launched(
    is_failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    engine, model = Engine(now=lambda: device.now), ModelOn(device)
    engine._accounts._mark = device.mark
    engine.load("model", model)
    engine.submit(Assignment("one", "model", RunParams(prompt="a cat", height=64, width=64), (0,)))
    for _ in range(2):
        engine.step()
    if is_failed:
        monkeypatch.setattr(model, "decode", None)
        monkeypatch.setattr(model, "predict", None)
        [(_, ended)] = engine.step()
    else:
        engine.cancel("one")
        [(_, ended)] = engine.take_events()
    assert isinstance(ended, AssignmentFailed if is_failed else AssignmentCancelled)
    assert ended.device_ms == pytest.approx(4000.0)
