"""How far runs have come, told often enough to be followed and no oftener: whoever listens shares a processor with the
steps. Thread: engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safelight.engine.costs import Costs
from safelight.engine.events import StepDone
from safelight.engine.forecast import Forecast
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import ImageTask, LiveRun


class ProgressTeller:
    """The runs whose steps were not told of yet. `interval_seconds` is the least between two tellings."""

    def __init__(self, scheduler: Scheduler, costs: Costs, *, interval_seconds: float) -> None:
        self._forecast = Forecast(scheduler, costs)
        self._interval_seconds = interval_seconds
        self._told_at = -math.inf
        self._untold: dict[LiveRun, None] = {}

    def note(self, run: LiveRun) -> None:
        """It has done a step more."""
        run.steps_done += 1
        self._untold[run] = None

    def is_due(self, now: float) -> bool:
        return now - self._told_at >= self._interval_seconds

    def tell(self, now: float, undecoded: Sequence[ImageTask]) -> list[tuple[LiveRun, StepDone]]:
        """Of the runs that have moved; of all of them where the time that is left was worked out anew, since whoever
        came may have put others off. `undecoded` are finished but for their pictures."""
        self._told_at = now
        left = self._forecast.seconds_left(now, undecoded)
        told, self._untold = self._untold, {}
        if self._forecast.is_new:
            told |= dict.fromkeys(left)
        return [(run, StepDone(run.steps_done, run.steps_total, left.get(run))) for run in told]

    def last(self, run: LiveRun) -> list[StepDone]:
        """Of a run that ends now: how far it came, unless that was told."""
        if run not in self._untold:
            return []
        del self._untold[run]
        return [StepDone(run.steps_done, run.steps_total, 0.0)]

    def forget(self) -> None:
        """Let go of the runs that the time left was told of."""
        self._forecast.forget()
