"""What the order of batches is worth: seeded load played through three policies, with step times that were measured.

    python -m benchmarks.policy

fifo: a lock, one run after the other. everything: all images of a shape that are there, in one batch, oldest first.
requests: equal ones together, from their first step to their last. safelight: its Scheduler, which learns the step
times as it goes. Time is simulated; the seconds are the device's.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.load import quantile_of
from safelight.engine.costs import Costs
from safelight.engine.models.base import ImageModel
from safelight.engine.samplers import StepTable
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import Assignment, Batch, BatchKey, ImageTask, LiveRun
from safelight.runs import RunParams

MAX_ROWS = 16
MAX_RESIDENT_IMAGES = 16
SMALL, LARGE = BatchKey("m", (16, 8, 8), (32, 192)), BatchKey("m", (16, 16, 16), (32, 192))


@dataclass(frozen=True, slots=True)
class Device:
    """Milliseconds of a step by shape and rows, and of a decode by shape."""

    name: str
    steps: Mapping[BatchKey, Mapping[int, float]]
    decodes: Mapping[BatchKey, float]

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        rows = sorted(self.steps[key])
        return float(np.interp(num_rows, rows, [self.steps[key][each] for each in rows])) / 1000.0

    def row_seconds(self, key: BatchKey) -> float:
        return min(self.step_seconds(key, rows) / rows for rows in self.steps[key])


DEVICES = (
    # `python -m benchmarks.policy --record` on one thread of an EPYC core with other work beside it, 2026-11-22.
    Device(
        "CPU, pinhole's size (measured)",
        {
            SMALL: {1: 60.5, 2: 78.1, 4: 96.3, 8: 137.9, 16: 203.7},
            LARGE: {1: 84.9, 2: 119.6, 4: 193.9, 8: 324.5, 16: 677.0},
        },
        {SMALL: 61.5, LARGE: 292.5},
    ),
    # Nobody's measurement: a device that two rows leave mostly idle and sixteen fill, as large GPUs are at 512 px.
    Device(
        "a wide device (assumed)",
        {SMALL: {1: 18.0, 4: 20.0, 8: 24.0, 16: 46.0}, LARGE: {1: 20.0, 2: 24.0, 4: 44.0, 16: 172.0}},
        {SMALL: 5.0, LARGE: 20.0},
    ),
)


class Policy(Protocol):
    def admit(self, task: ImageTask) -> None: ...
    def remove(self, task: ImageTask) -> None: ...
    def charge(self, batch: Batch, seconds: float) -> None: ...
    def choose(self) -> Batch | None: ...


class FirstComeFirstServed:
    """One run at a time; or, with `is_shared`, all images of the oldest one's shape together."""

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._waiting: list[ImageTask] = []

    def admit(self, task: ImageTask) -> None:
        self._waiting.append(task)

    def remove(self, task: ImageTask) -> None:
        self._waiting.remove(task)

    def charge(self, batch: Batch, seconds: float) -> None:
        pass

    def choose(self) -> Batch | None:
        if not self._waiting:
            return None
        first, tasks, room = self._waiting[0], [], MAX_ROWS
        for task in self._waiting:
            is_with = task.key == first.key if self._is_shared else task.run is first.run
            if is_with and task.num_rows <= room:
                tasks.append(task)
                room -= task.num_rows
        return Batch(first.key, tuple(tasks))


class RequestBatches:
    """Runs of one shape and as many steps that are there together are drawn together to their end;
    nobody joins on the way.

    That is what servers do that batch requests, with everything to their favour: no time is spent waiting for company,
    and guidance and sampler are taken to be equal.
    """

    def __init__(self) -> None:
        self._waiting: list[ImageTask] = []
        self._travelling: list[ImageTask] = []

    def admit(self, task: ImageTask) -> None:
        self._waiting.append(task)

    def remove(self, task: ImageTask) -> None:
        self._travelling.remove(task)

    def charge(self, batch: Batch, seconds: float) -> None:
        pass

    def choose(self) -> Batch | None:
        if not self._travelling and self._waiting:
            first = self._waiting[0]
            equal = [each for each in self._waiting if (each.key, len(each.table)) == (first.key, len(first.table))]
            self._travelling = equal[: MAX_ROWS // first.num_rows]
            self._waiting = [each for each in self._waiting if each not in self._travelling]
        return Batch(self._travelling[0].key, tuple(self._travelling)) if self._travelling else None


class NoKnee(Costs):
    """Never finds that fewer rows are enough."""

    def rows_worth(self, key: BatchKey, most: int) -> int:
        return most


class Ours(Scheduler):
    """The engine's scheduler, told the times as the engine tells it."""

    def __init__(self, *, has_knee: bool = True) -> None:
        self._known = Costs() if has_knee else NoKnee()
        super().__init__(max_rows=MAX_ROWS, costs=self._known)

    def charge(self, batch: Batch, seconds: float) -> None:
        super().charge(batch, seconds)
        self._known.record_step(batch.key, batch.num_rows, seconds)

    def charge_decode(self, task: ImageTask, seconds: float) -> None:
        self.charge_alone(task.run, seconds)
        self._known.record_decode(task.key, seconds)


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "fifo": lambda: FirstComeFirstServed(is_shared=False),
    "everything": lambda: FirstComeFirstServed(is_shared=True),
    "requests": RequestBatches,
    "safelight": Ours,
}

WITHOUT_KNEE: Mapping[str, Callable[[], Policy]] = {"no knee": partial(Ours, has_knee=False)}


@dataclass(frozen=True, slots=True)
class Request:
    """One run that arrives."""

    at: float
    key: BatchKey
    num_steps: int
    num_images: int
    is_guided: bool = True

    @property
    def is_short(self) -> bool:
        return self.num_steps <= 8 and self.num_images == 1

    def tasks(self, number: int) -> list[ImageTask]:
        scale = 7.5 if self.is_guided else 1.0
        params = RunParams(prompt="", num_images_per_prompt=self.num_images, guidance_scale=scale)
        indices = tuple(range(self.num_images))
        assignment = Assignment(str(number), "m", params, indices)
        total = self.num_images * self.num_steps
        run = LiveRun(assignment, cast(ImageModel, None), self.num_images, 0, total)
        table = StepTable(np.zeros((self.num_steps, 1)), 1.0, 0)
        return [ImageTask(run=run, index=index, seed=index, key=self.key, table=table) for index in indices]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds from arrival to the last picture of each request, and until the last one's."""

    latencies: list[float]
    short: list[float]
    seconds: float


def make_load(device: Device, *, load: float, num_requests: int, seed: int) -> list[Request]:
    """Poisson arrivals at a share of what the device can do; half of the requests are short."""
    chance, at = random.Random(seed), 0.0
    wanted: list[tuple[float, BatchKey, int, int]] = []
    for _ in range(num_requests):
        key = SMALL if chance.random() < 0.7 else LARGE
        num_steps = chance.choice((4, 4, 8, 8, 20, 30, 50, 50))
        num_images = chance.choice((1, 1, 1, 2))
        work = num_images * (2 * num_steps * device.row_seconds(key) + device.decodes[key] / 1000.0)
        wanted.append((work, key, num_steps, num_images))
    gap = sum(work for work, *_ in wanted) / num_requests / load
    requests = []
    for _, key, num_steps, num_images in wanted:
        at += chance.expovariate(1.0 / gap)
        requests.append(Request(at, key, num_steps, num_images))
    return requests


def play(policy: Policy, device: Device, requests: Sequence[Request], *, seed: int) -> Outcome:
    """Let the device work through `requests`, admitted in the order they came as long as there is room."""
    chance, now, next_one, resident = random.Random(seed), 0.0, 0, 0
    ended: dict[int, float] = {}
    while len(ended) < len(requests):
        while next_one < len(requests) and requests[next_one].at <= now and resident < MAX_RESIDENT_IMAGES:
            for task in requests[next_one].tasks(next_one):
                policy.admit(task)
                resident += 1
            next_one += 1
        batch = policy.choose()
        if batch is None:
            now = requests[next_one].at
            continue
        seconds = device.step_seconds(batch.key, batch.num_rows) * chance.lognormvariate(0.0, 0.03)
        policy.charge(batch, seconds)
        now += seconds
        for task in batch.tasks:
            task.cursor += 1
            if task.num_steps_left == 0:
                policy.remove(task)
                now += device.decodes[task.key] / 1000.0
                resident -= 1
                task.run.num_images_left -= 1
                if task.run.num_images_left == 0:
                    number = int(task.run.run_id)
                    ended[number] = now - requests[number].at
    latencies = [ended[number] for number in sorted(ended)]
    short = [ended[number] for number in sorted(ended) if requests[number].is_short]
    return Outcome(latencies, short, now)


def compare(policies: Mapping[str, Callable[[], Policy]], num_requests: int, seed: int) -> Table:
    table = Table(title=f"seconds from arrival to last picture, {num_requests} requests, seed {seed}")
    for column in ("device", "load", "policy", "mean", "p50", "p95", "p99", "p95 of short", "requests/s"):
        table.add_column(column, justify="left" if column in ("device", "policy") else "right")
    for device in DEVICES:
        for load in (0.5, 0.8, 0.95):
            requests = make_load(device, load=load, num_requests=num_requests, seed=seed)
            for name, make in policies.items():
                found = play(make(), device, requests, seed=seed)
                figures = [sum(found.latencies) / len(found.latencies)]
                figures += [quantile_of(found.latencies, quantile) for quantile in (0.5, 0.95, 0.99)]
                figures.append(quantile_of(found.short, 0.95))
                cells = [f"{figure:.2f}" for figure in figures]
                table.add_row(device.name, f"{load:.0%}", name, *cells, f"{len(requests) / found.seconds:.2f}")
            table.add_section()
    return table


def record() -> None:
    """Print the times of networks of pinhole's size on this machine: processor time, which other work changes least."""
    import torch

    from benchmarks.engine import RandomModel

    torch.set_num_threads(1)
    model = RandomModel(torch.bfloat16)
    for side in (256, 512):
        shape, steps = model.latent_shape(side, side), {}
        for rows in (1, 2, 4, 8, 16):
            x, hidden = torch.randn(rows, *shape), torch.randn(rows, *model.conditioning_shape).bfloat16()
            sigma, timestep = torch.full((rows,), 3.0), torch.full((rows,), 500.0)
            steps[rows] = _least_ms(partial(model.predict, x, sigma, timestep, hidden))
        print(side, steps, _least_ms(partial(model.decode, torch.randn(*shape), side, side)), flush=True)


def _least_ms(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        call()
        seconds.append(time.thread_time() - began)
    return round(1000.0 * min(seconds), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-knee", action="store_true", help="also ours with as many rows as fit")
    parser.add_argument("--record", action="store_true", help="measure this machine's step times and stop")
    asked = parser.parse_args()
    if asked.record:
        record()
        return
    policies = {**POLICIES, **(WITHOUT_KNEE if asked.no_knee else {})}
    Console(width=120).print(compare(policies, asked.requests, asked.seed))


if __name__ == "__main__":
    main()
