"""How true the announced time left is, and how soon a cancel works: `python -m benchmarks.promptness`.

A real server with pinhole. Several runs are left at once and followed while nothing else arrives; each
announcement since the last of them was begun is held against when the run ended. The first round after a start is
told apart: what batches take that were never drawn is being found out then. Then, at a second server, which
reports every step, long runs are cancelled one by one, between others that go on: a step under way cannot be broken
off, so what counts is how many were begun after the answer.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from benchmarks.load import mixed_requests, quantile_of
from benchmarks.machine import publish
from benchmarks.servers import safelight, wait_until_compiled
from safelight.client import Client, RunHandle
from safelight.runs import RunEvent, RunEventKind

LONGEST_STEPS = 150
SHORTEST_LEFT_SECONDS = 0.5
"""Of what ends sooner no announcement counts: a twentieth of a second would be a tenth of it."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a run's event said of the time left, and what it was then. Seconds on the client's clock."""

    announced: float
    left: float

    @property
    def error(self) -> float:
        return abs(self.announced - self.left) / self.left


@dataclass(frozen=True, slots=True)
class Cancelled:
    """From the call to its answer and to the end of the run, what a step took just before, and how many of the run's
    were begun after the answer, not counting the one that was under way."""

    answer_seconds: float
    seconds: float
    step_seconds: float
    num_begun: int

    @property
    def steps(self) -> float:
        return self.seconds / self.step_seconds


def follow(handle: RunHandle) -> list[tuple[float, RunEvent]]:
    """Every event of a run, and when it came."""
    return [(time.perf_counter(), event) for event in handle.events()]


def begun_at(events: Sequence[tuple[float, RunEvent]]) -> float:
    return next(at for at, event in events if event.kind is RunEventKind.STARTED)


def announcements(events: Sequence[tuple[float, RunEvent]], *, since: float) -> list[Announcement]:
    """What was told before `since` could not know of all the work."""
    ended_at, last = events[-1]
    assert last.kind is RunEventKind.SUCCEEDED, last
    told = [
        Announcement(event.eta_seconds, ended_at - at)
        for at, event in events
        if event.eta_seconds is not None and at >= since
    ]
    return [each for each in told if each.left >= SHORTEST_LEFT_SECONDS]


def submit(client: Client, request: dict[str, object]) -> RunHandle:
    return client.submit("pinhole", **request)  # type: ignore[arg-type]


def measure_announcements(client: Client, requests: Iterable[dict[str, object]]) -> list[list[Announcement]]:
    """Of each run, in the order of time."""
    handles = [submit(client, request) for request in requests]
    with ThreadPoolExecutor(len(handles)) as readers:
        seen = list(readers.map(follow, handles))
    last_begun_at = max(begun_at(events) for events in seen)
    return [announcements(events, since=last_begun_at) for events in seen]


def measure_cancels(client: Client, *, num_runs: int, seed: int, side: int) -> list[Cancelled]:
    """Long runs side by side, cancelled one after the other at moments of chance."""
    chance = random.Random(seed)
    requests = mixed_requests(num_runs + 1, seed=seed, side=side)
    handles = [submit(client, request | {"num_inference_steps": LONGEST_STEPS}) for request in requests]
    with ThreadPoolExecutor(len(handles)) as readers:
        # One goes on until the last cancel was seen, so that all of them end between others.
        found = list(readers.map(partial(cancel_soon, after=lambda: 0.5 + chance.random()), handles[:-1]))
        handles[-1].cancel()
    return found


def cancel_soon(handle: RunHandle, *, after: Callable[[], float]) -> Cancelled:
    """Cancel the run some seconds after its first step."""
    steps: list[tuple[float, int]] = []
    asked_at, answered_at, due, num_done = 0.0, 0.0, 0.0, 0
    for event in handle.events():
        now = time.perf_counter()
        if event.steps_done and not asked_at:
            steps.append((now, event.steps_done))
            due = due or now + after()
            if now >= due and len(steps) > 2:
                asked_at = time.perf_counter()
                num_done = handle.cancel().steps_done
                answered_at = time.perf_counter()
    assert asked_at, "the run ended before it was cancelled"
    ended_at = time.perf_counter()
    (first_at, first), (last_at, last) = steps[0], steps[-1]
    num_begun = max(0, handle.get().steps_done - num_done - 1)
    return Cancelled(answered_at - asked_at, ended_at - asked_at, (last_at - first_at) / (last - first), num_begun)


def main() -> None:
    options = _parser().parse_args()
    told: list[list[Announcement]] = []
    cancels: list[Cancelled] = []
    with warm_server(options.side) as client:
        first = measure_announcements(client, mixed_requests(options.runs, seed=1, side=options.side))
        for number in range(options.rounds):
            told += measure_announcements(client, mixed_requests(options.runs, seed=number + 2, side=options.side))
    with warm_server(options.side, SAFELIGHT_WORKER__PROGRESS_SECONDS="0.01") as client:
        for number in range(options.rounds):
            cancels += measure_cancels(client, num_runs=options.cancels, seed=number + 1, side=options.side)
    publish("promptness", _table(first, told, cancels, options.side))


@contextmanager
def warm_server(side: int, **environment: str) -> Iterator[Client]:
    with safelight(**environment) as target, Client(target.url, target.key) as client:
        wait_until_compiled(target)
        for request in mixed_requests(2, seed=0, side=side):
            submit(client, request).wait()
        yield client


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6, help="runs left at once")
    parser.add_argument("--cancels", type=int, default=3, help="runs cancelled in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    return parser


def _table(
    first: list[list[Announcement]], told: list[list[Announcement]], cancels: list[Cancelled], side: int
) -> Table:
    table = Table(title=f"pinhole, {side} px: the announced time left, and cancels")
    for heading in ("what", "number", "median", "90th percentile", "goal (median)"):
        table.add_column(heading)
    table.add_row("error of the time left, every announcement", *_percent(_errors(told)), "< 10 %")
    table.add_row("error of the time left, the first of a run", *_percent(_errors([run[:1] for run in told])), "< 10 %")
    table.add_row("error of the time left, the first round after a start", *_percent(_errors(first)), "")
    seconds = [each.seconds for each in cancels]
    table.add_row("cancel to its answer, s", *_figures([each.answer_seconds for each in cancels]), "")
    table.add_row("cancel to end, s", *_figures(seconds), "")
    table.add_row("cancel to end, steps", *_figures([each.steps for each in cancels]), "")
    table.add_row("steps begun after the answer", *_figures([float(each.num_begun) for each in cancels]), "0")
    return table


def _errors(told: list[list[Announcement]]) -> list[float]:
    return [each.error for run in told for each in run]


def _percent(errors: Sequence[float]) -> tuple[str, str, str]:
    return str(len(errors)), f"{statistics.median(errors):.1%}", f"{quantile_of(errors, 0.9):.1%}"


def _figures(values: Sequence[float]) -> tuple[str, str, str]:
    return str(len(values)), f"{statistics.median(values):.2f}", f"{quantile_of(values, 0.9):.2f}"


if __name__ == "__main__":
    main()
