"""What the device's work took, and who pays for it. Thread: engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from safelight.engine.costs import Costs
from safelight.engine.meter import Meter
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import Batch, ImageTask, LiveRun


class Mark(Protocol):
    """A moment of a device's work: a GPU comes to it later than whoever set it."""

    @property
    def is_past(self) -> bool: ...

    def wait(self) -> None:
        """Until the device has come to it."""
        ...

    def seconds_since(self, earlier: Mark) -> float:
        """Between two moments that are past."""
        ...


class Accounts:
    """Of one engine. A step is paid for when its device has done it: a CPU when the call returns, a GPU
    some time after."""

    def __init__(
        self,
        scheduler: Scheduler,
        costs: Costs,
        meter: Meter,
        *,
        now: Callable[[], float],
        mark: Callable[[torch.device], Mark] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._costs = costs
        self._meter = meter
        self._mark = mark or (lambda device: _GpuMark(device) if device.type == "cuda" else _HostMark(now))
        self._running: deque[tuple[Batch, Mark, Mark]] = deque()

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """The block gives a step of the batch to the device. Where it fails, what it took until then is paid for."""
        device = batch.tasks[0].run.model.device
        began = self._mark(device)
        try:
            yield
        except Exception:
            failed = self._mark(device)
            failed.wait()
            self.settle()
            self._charge(batch, failed.seconds_since(began))
            raise
        self._running.append((batch, began, self._mark(device)))

    def settle(self, *, num_running: int = 0) -> None:
        """Have the steps paid that are done; wait until no more than `num_running` are not."""
        while self._running and (len(self._running) > num_running or self._running[0][2].is_past):
            batch, began, ended = self._running.popleft()
            ended.wait()
            seconds = ended.seconds_since(began)
            self._charge(batch, seconds)
            self._costs.record_step(batch.key, batch.num_rows, seconds)
            self._meter.record_step(seconds, num_rows=batch.num_rows, num_places=self._scheduler.max_rows(batch.key))
            self._scheduler.widen_rows(batch)

    def charge_alone(self, run: LiveRun, seconds: float) -> None:
        """The device worked so long on one run, outside of a batch."""
        self._meter.record_busy(seconds)
        self._scheduler.charge_alone(run, seconds)
        run.run_time += seconds
        run.device_time += seconds

    def record_decode(self, task: ImageTask, seconds: float) -> None:
        """A picture was decoded."""
        self._costs.record_decode(task.key, seconds)
        self._meter.record_decode(seconds)

    def _charge(self, batch: Batch, seconds: float) -> None:
        """Every run of the batch worked all that time; of the device's time each has the share of its rows."""
        self._meter.record_busy(seconds)
        self._scheduler.charge(batch, seconds)
        for task in batch.tasks:
            task.run.device_time += seconds * task.num_rows / batch.num_rows
        for run in {task.run for task in batch.tasks}:
            run.run_time += seconds


class _HostMark:
    """A CPU has come to it when it is set."""

    is_past = True

    def __init__(self, now: Callable[[], float]) -> None:
        self._at = now()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _HostMark)
        return self._at - earlier._at


class _GpuMark:
    """An event in the stream that the device works through."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    @property
    def is_past(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _GpuMark)
        return float(earlier._event.elapsed_time(self._event)) / 1000.0
