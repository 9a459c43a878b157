"""What each of two keys gets of a busy device: the worker's claims and the engine's scheduler together, on
simulated time."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest

from safelight.runs import Run, RunParams, RunStatus
from safelight.worker.claims import crowded_keys

from .test_scheduler import LARGE, SMALL, make_task, measured, scheduler_of

ROOM = 16
NUM_STEPS = 1000


def share_of_busy_key(weights: dict[str, float], *, seed: int) -> float:
    """Of the device's time, when key `a` sends ten runs for each of key `b` and both send more than can be drawn."""
    chance, costs = random.Random(seed), measured(rows=4)
    scheduler = scheduler_of(costs=costs)
    numbers, held, seconds = count(), dict[str, Run](), Counter[str]()
    queue = [make_run(str(next(numbers)), "b" if number % 11 == 0 else "a", weights) for number in range(400)]
    for _ in range(NUM_STEPS):
        while len(held) < ROOM:
            order = crowded_keys(held.values())
            run = min(queue, key=lambda each: order.index(each.key_id) if each.key_id in order else -1)
            queue.remove(run)
            held[run.id] = run
            size, steps = chance.choice((SMALL, SMALL, LARGE)), chance.choice((4, 8, 20, 50))
            scheduler.admit(make_task(run.id, key=size, key_id=run.key_id, weight=run.weight, num_steps=steps))
        batch = scheduler.choose()
        assert batch is not None
        step = costs.step_seconds(batch.key, batch.num_rows) or 0.0
        scheduler.charge(batch, step)
        for task in batch.tasks:
            key_id = held[task.run.run_id].key_id
            seconds[key_id] += step * task.num_rows / batch.num_rows
            task.cursor += 1
            if not task.num_steps_left:
                scheduler.remove(task)
                del held[task.run.run_id]
                queue.append(make_run(str(next(numbers)), key_id, weights))
    return seconds["a"] / seconds.total()


def make_run(run_id: str, key_id: str, weights: dict[str, float]) -> Run:
    return Run(
        id=run_id,
        project="p",
        key_id=key_id,
        deployment="d",
        deployment_version=1,
        params=RunParams(prompt=""),
        status=RunStatus.RUNNING,
        created_at=0.0,
        weight=weights[key_id],
    )


@pytest.mark.parametrize(("weights", "fair"), [((1.0, 1.0), 1 / 2), ((2.0, 1.0), 2 / 3), ((1.0, 2.0), 1 / 3)])
def test_whoever_asks_ten_times_as_much_gets_what_its_weight_says(weights: tuple[float, float], fair: float) -> None:
    share = share_of_busy_key({"a": weights[0], "b": weights[1]}, seed=1)
    assert abs(share - fair) < 0.05, share
