"""When each run will be finished: the queue played forward by the scheduler's own rules and the measured times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safelight.engine.costs import Costs
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import ImageTask, LiveRun

TURN_STEPS = 4
"""How far it looks at once where keys or shapes alternate: step by step would take too long."""

FRESH_SECONDS = 0.5
"""How long a forecast is told on, less the time that passed: playing forward is not free."""


class Forecast:
    """The seconds left of every run under way, worked out anew when images came or went, and now and then: `is_new`
    says whether the last answer was."""

    def __init__(self, scheduler: Scheduler, costs: Costs) -> None:
        self._scheduler = scheduler
        self._costs = costs
        self.is_new = False
        self._made_at = 0.0
        self._known: frozenset[ImageTask] = frozenset()
        self._left: dict[LiveRun, float] = {}

    def forget(self) -> None:
        """Let go of the runs it was about."""
        self._known, self._left = frozenset(), {}

    def seconds_left(self, now: float, undecoded: Sequence[ImageTask] = ()) -> dict[LiveRun, float]:
        """Of each run whose shape was measured, if nothing more arrives. `undecoded` are finished but for their
        pictures, which come before whatever is drawn."""
        known = frozenset(self._scheduler)
        self.is_new = known != self._known or now - self._made_at >= FRESH_SECONDS
        if self.is_new:
            self._made_at, self._known = now, known
            self._left = play_forward(self._scheduler, self._costs, undecoded)
        passed = now - self._made_at
        return {run: max(0.0, left - passed) for run, left in self._left.items()}


def play_forward(scheduler: Scheduler, costs: Costs, undecoded: Sequence[ImageTask] = ()) -> dict[LiveRun, float]:
    """Seconds until each run's last picture. Runs of a shape that was never measured have none."""
    ahead, seconds = scheduler.copy(), 0.0
    left: dict[LiveRun, float] = {}
    for task in undecoded:
        seconds += costs.decode_seconds(task.key)
        left[task.run] = seconds
    has_rivals = len({(task.key, task.run.assignment.key_id) for task in ahead}) > 1
    while (batch := ahead.choose()) is not None:
        step = costs.step_seconds(batch.key, batch.num_rows)
        if step is None:
            _finish(ahead, batch.tasks)
            continue
        num_steps = min(task.num_steps_left for task in batch.tasks)
        if has_rivals:
            # Between keys and shapes the choice changes on the way; alone, the same images travel until one is done.
            num_steps = min(num_steps, max(TURN_STEPS, num_steps // 4))
        seconds += num_steps * step
        ahead.charge(batch, num_steps * step)
        for task in batch.tasks:
            task.cursor += num_steps
        done = [task for task in batch.tasks if task.num_steps_left == 0]
        for task in done:
            seconds += costs.decode_seconds(task.key)
            left[task.run] = seconds
        _finish(ahead, done)
    return left


def _finish(scheduler: Scheduler, tasks: Iterable[ImageTask]) -> None:
    for task in tasks:
        scheduler.remove(task)
