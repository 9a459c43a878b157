"""The figures of the home page, folded from what the store counted. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safelight.deployments import Deployment
from safelight.runs import RunStatus
from safelight.store.figures import DAY_SECONDS, HOUR_SECONDS, Activity, EndedRun, Waiting

NUM_HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A day of one deployment, or of all. `hours` are pictures per hour, the oldest first."""

    num_queued: int
    num_running: int
    hours: tuple[int, ...]
    num_failed: int
    p50_seconds: float | None
    p95_seconds: float | None

    @property
    def images_last_hour(self) -> int:
        return self.hours[-1]

    @property
    def images_last_day(self) -> int:
        return sum(self.hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The whole server at a glance. `busy_hours` are shares of each hour in which anything was drawn,
    the oldest first."""

    total: Traffic
    deployments: Sequence[tuple[Deployment, Traffic]]
    busy_hours: tuple[float, ...]
    webhook_failures: tuple[int, ...]
    num_deliveries: int

    @property
    def busy_last_hour(self) -> float:
        return self.busy_hours[-1]


def make_overview(activity: Activity, deployments: Sequence[Deployment]) -> Overview:
    """Put the counts of a day beside the deployments they belong to."""
    failures = activity.failed_deliveries
    return Overview(
        total=_traffic(activity, None),
        deployments=[(each, _traffic(activity, each.name)) for each in deployments],
        busy_hours=_busy_shares([*activity.ended, *activity.running], activity.at),
        webhook_failures=tuple(failures.get(hour, 0) for hour in reversed(range(NUM_HOURS))),
        num_deliveries=activity.num_deliveries,
    )


def _traffic(activity: Activity, name: str | None) -> Traffic:
    hours = [0] * NUM_HOURS
    for count in activity.images:
        if name in (None, count.deployment) and 0 <= count.hours_ago < NUM_HOURS:
            hours[NUM_HOURS - 1 - count.hours_ago] += count.num_images
    ended = [run for run in activity.ended if name in (None, run.deployment)]
    took = sorted(
        run.ended_at - run.created_at for run in ended if run.status is RunStatus.SUCCEEDED and run.ended_at is not None
    )
    waiting = [found for key, found in activity.waiting.items() if name in (None, key)] or [Waiting()]
    return Traffic(
        num_queued=sum(found.num_queued for found in waiting),
        num_running=sum(found.num_running for found in waiting),
        hours=tuple(hours),
        num_failed=sum(run.status is RunStatus.FAILED for run in ended),
        p50_seconds=percentile(took, 0.50),
        p95_seconds=percentile(took, 0.95),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed; None of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _busy_shares(runs: Sequence[EndedRun], at: float) -> tuple[float, ...]:
    """For each hour, the share of it in which at least one run was being drawn."""
    busy = [0.0] * NUM_HOURS
    covered_to = at - DAY_SECONDS
    # A clock that was set back leaves runs that ended later than now.
    drawn = ((run.started_at, min(run.ended_at or at, at)) for run in runs if run.started_at is not None)
    for start, end in sorted(drawn):
        begin = max(start, covered_to)
        while begin < end:
            hours_ago = min(int((at - begin) / HOUR_SECONDS), NUM_HOURS - 1)
            # The end of that hour; at an exact border the next one begins.
            hour_end = at - hours_ago * HOUR_SECONDS
            if hour_end <= begin:
                hour_end += HOUR_SECONDS
            until = min(end, hour_end)
            busy[NUM_HOURS - 1 - hours_ago] += until - begin
            begin = until
        covered_to = max(covered_to, end)
    return tuple(min(1.0, seconds / HOUR_SECONDS) for seconds in busy)
