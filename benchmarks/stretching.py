"""How long short requests wait beside long ones: many seeds of the load of `benchmarks.serving`, on simulated time.

    python -m benchmarks.stretching --seeds 24

Each seed is a server with a scheduler of its own: eight clients that wait for their answers, then arrivals at
two rates. Step times are pinhole's at 512 px through OpenVINO, measured on one thread. The figures are a simulation's;
what one order of work is worth beside another they tell in a minute. --cold: without the clients before.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from benchmarks.load import mixed_requests, quantile_of
from benchmarks.policy import MAX_RESIDENT_IMAGES, Device, Ours, Request
from safelight.engine.tasks import BatchKey, ImageTask

KEY = BatchKey("m", (20, 32, 32), (32, 192))

STEP_MS = {
    **{1: 8.5, 2: 12.5, 3: 20.5, 4: 19.8, 5: 28.5, 6: 33.8, 7: 34.0, 8: 34.3},
    **{10: 47.5, 12: 55.5, 14: 64.0, 16: 64.5},
}

PINHOLE = Device("pinhole, 512 px, OpenVINO, one thread (measured)", {KEY: STEP_MS}, {KEY: 103.0})

BESIDES = 1.1
"""How much slower it is beside the door and the clients, on the other thread of the same core."""

DOOR_SECONDS = 0.0125
"""From the client into the engine, and from the engine back."""


class Server:
    """An engine under load: a step and a decode in turns, as Engine.step does it. Learns as it goes."""

    def __init__(self, seed: int) -> None:
        self._policy = Ours()
        self._chance = random.Random(seed)

    def answer(self, requests: Sequence[Request], *, num_clients: int = 0) -> tuple[list[float], float]:
        """Seconds from each request to its answer, and from the first to the last. With clients each sends its next
        request when the last was answered; without, requests come at their times."""
        sent = [0.0 if num_clients else request.at for request in requests]
        coming = [(at + DOOR_SECONDS, number) for number, at in enumerate(sent[: num_clients or None])]
        num_sent, answered = len(coming), dict[int, float]()
        finished, now, is_decoders_turn, num_resident = deque[ImageTask](), 0.0, False, 0
        while len(answered) < len(requests):
            while coming and coming[0][0] <= now and num_resident < MAX_RESIDENT_IMAGES:
                _, number = heapq.heappop(coming)
                num_resident += 1
                [task] = requests[number].tasks(number)
                self._policy.admit(task)
            if finished and (is_decoders_turn or not len(self._policy)):
                task = finished.popleft()
                now += self._decode(task)
                number, num_resident = int(task.run.run_id), num_resident - 1
                answered[number] = now + DOOR_SECONDS - sent[number]
                if num_sent < len(requests):
                    sent[num_sent] = now + DOOR_SECONDS
                    heapq.heappush(coming, (now + 2 * DOOR_SECONDS, num_sent))
                    num_sent += 1
                is_decoders_turn = False
            elif len(self._policy):
                now += self._step(finished)
                is_decoders_turn = True
            else:
                now = coming[0][0]
        return [answered[number] for number in range(len(requests))], now

    def _step(self, finished: deque[ImageTask]) -> float:
        batch = self._policy.choose()
        assert batch is not None
        seconds = self._noisy(PINHOLE.step_seconds(KEY, batch.num_rows))
        self._policy.charge(batch, seconds)
        for task in batch.tasks:
            task.cursor += 1
            if task.num_steps_left == 0:
                self._policy.remove(task)
                finished.append(task)
        return seconds

    def _decode(self, task: ImageTask) -> float:
        seconds = self._noisy(PINHOLE.decodes[KEY] / 1000.0)
        self._policy.charge_decode(task, seconds)
        return seconds

    def _noisy(self, seconds: float) -> float:
        return seconds * BESIDES * self._chance.lognormvariate(0.0, 0.04)


@dataclass(slots=True)
class Found:
    """Seconds to the answer: of the third with the fewest steps, of that with the most, and of all, and what each round
    calls its 95th percentile of the first."""

    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def add(self, requests: Sequence[Request], seconds: Sequence[float]) -> None:
        order = sorted(range(len(requests)), key=lambda number: requests[number].num_steps)
        third = max(1, len(order) // 3)
        short = [seconds[number] for number in order[:third]]
        self.short += short
        self.long += [seconds[number] for number in order[-third:]]
        self.all += seconds
        self.rounds.append(quantile_of(short, 0.95))


def make_requests(count: int, *, seed: int, per_second: float = 1.0) -> list[Request]:
    """Of `benchmarks.load`, at random times."""
    chance, at, requests = random.Random(seed), 0.0, []
    for each in mixed_requests(count, seed=seed + 100):
        at += chance.expovariate(per_second)
        num_steps, is_guided = int(str(each["num_inference_steps"])), each["guidance_scale"] != 1.0
        requests.append(Request(at, KEY, num_steps, 1, is_guided))
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--requests", type=int, default=40, help="in each of the two rounds of every load")
    parser.add_argument("--rate", type=float, action="append", help="requests a second (1.58 and 2.37)")
    parser.add_argument("--cold", action="store_true", help="the arrivals find servers that have measured nothing")
    asked = parser.parse_args()
    found = {rate: Found() for rate in asked.rate or (1.58, 2.37)}
    capacities = []
    for seed in range(0, 1000 * asked.seeds, 1000):
        server = Server(seed)
        for index in () if asked.cold else (1, 2):
            _, seconds = server.answer(make_requests(asked.requests, seed=seed + index), num_clients=8)
            capacities.append(asked.requests / seconds)
        for rate, into in found.items():
            for index in (1, 2):
                requests = make_requests(asked.requests, seed=seed + index, per_second=rate)
                server = Server(seed) if asked.cold else server
                into.add(requests, server.answer(requests)[0])
    Console(width=120).print(_table(found, capacities))


def _table(found: dict[float, Found], capacities: Sequence[float]) -> Table:
    each = sum(capacities) / len(capacities) if capacities else 0.0
    table = Table(title=f"{PINHOLE.name}, seconds to the answer; 8 clients: {each:.2f} images/s")
    for heading in ("requests/s", "short: p50", "p95", "p95, median round", "long: p50", "p95", "all: p50", "p95"):
        table.add_column(heading, justify="right")
    for rate, seen in found.items():
        figures = [quantile_of(seen.short, 0.5), quantile_of(seen.short, 0.95), quantile_of(seen.rounds, 0.5)]
        figures += [quantile_of(values, quantile) for values in (seen.long, seen.all) for quantile in (0.5, 0.95)]
        table.add_row(f"{rate:.2f}", *(f"{figure:.2f}" for figure in figures))
    return table


if __name__ == "__main__":
    main()
