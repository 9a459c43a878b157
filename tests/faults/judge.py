"""Looks at everything after the faults: is each accepted run there once, ended once, with its own
picture, and told of?"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from safelight.config import Settings
from safelight.runs import DeliveryStatus, Run, RunStatus
from safelight.store import Store
from safelight.testing import colour_of

from .crew import opened
from .traffic import prompt_of

PAGE = 500


@dataclass
class Judgement:
    num_runs: int = 0
    num_claims: int = 0
    num_attempts: int = 0
    num_deliveries: int = 0
    faults: list[str] = field(default_factory=list)


async def all_runs(store: Store) -> list[Run]:
    found: list[Run] = []
    cursor: str | None = None
    while True:
        page, cursor = await store.runs.list(limit=PAGE, cursor=cursor)
        found += page
        if cursor is None:
            return found


async def settle(settings: Settings, within: float) -> bool:
    """Wait until every run has ended and every webhook was told."""
    deadline = time.monotonic() + within
    async with await opened(settings) as store:
        while time.monotonic() < deadline:
            backlog = await store.runs.backlog()
            is_told = await store.deliveries.seconds_to_next() is None
            if not backlog.num_queued and not backlog.num_running and is_told:
                return True
            await asyncio.sleep(0.3)
    return False


async def judge(
    settings: Settings, accepted: Iterable[tuple[int, str]], arrived: Iterable[tuple[str, str]] | None
) -> Judgement:
    """`accepted` are 2xx that clients saw, `arrived` what the endpoint got (None: no run names one)."""
    found = Judgement()
    async with await opened(settings) as store:
        runs = {run.id: run for run in await all_runs(store)}
        found.num_runs = len(runs)
        by_number: dict[int, set[str]] = defaultdict(set)
        for number, run_id in accepted:
            by_number[number].add(run_id)
            if run_id not in runs:
                found.faults.append(f"accepted run {run_id} is lost")
        found.faults += [f"key {number} made {len(ids)} runs" for number, ids in by_number.items() if len(ids) > 1]
        if len(runs) != len(by_number):
            found.faults.append(f"{len(by_number)} keys made {len(runs)} runs")
        for number, ids in by_number.items():
            for run_id in ids & runs.keys():
                await _judge_run(store, runs[run_id], number, found)
        if arrived is not None:
            await _judge_deliveries(store, runs.values(), arrived, found)
    return found


async def _judge_run(store: Store, run: Run, number: int, found: Judgement) -> None:
    found.num_claims += run.fence
    kinds = [event.kind.value for event in await store.events.after(run.id)]
    ends = [kind for kind in kinds if kind in ("succeeded", "failed", "cancelled")]
    if run.status is not RunStatus.SUCCEEDED or ends != ["succeeded"] or kinds[-1] != "succeeded":
        found.faults.append(f"{run.id} is {run.status.value} after {kinds}")
        return
    if kinds.count("started") != run.fence or kinds.count("requeued") != run.fence - 1:
        found.faults.append(f"{run.id} has fence {run.fence} after {kinds}")
    if len(run.images) != run.params.num_images_per_prompt or kinds.count("image") != len(run.images):
        found.faults.append(f"{run.id} has {len(run.images)} pictures after {kinds}")
    for image in run.images:
        data = await store.images.read(image.path)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            found.faults.append(f"{run.id} has a damaged picture")
        elif set(np.unique(np.asarray(Image.open(io.BytesIO(data))))) != {colour_of(prompt_of(number))}:
            found.faults.append(f"{run.id} has another run's picture")


async def _judge_deliveries(
    store: Store, runs: Iterable[Run], arrived: Iterable[tuple[str, str]], found: Judgement
) -> None:
    bodies: dict[str, Counter[str]] = defaultdict(Counter)
    for event_id, digest in arrived:
        bodies[event_id][digest] += 1
    found.num_deliveries = len(bodies)
    found.num_attempts = sum(sum(digests.values()) for digests in bodies.values())
    found.faults += [f"{event_id} had two bodies" for event_id, digests in bodies.items() if len(digests) > 1]
    for run in runs:
        told = await store.deliveries.list(run_id=run.id)
        if [delivery.status for delivery in told] != [DeliveryStatus.DELIVERED]:
            found.faults.append(f"{run.id} has deliveries {[delivery.status.value for delivery in told]}")
        elif told[0].event_id not in bodies:
            found.faults.append(f"{run.id} was not told of")
    if bodies.keys() - {"evt_" + run.id.replace("-", "") for run in runs}:
        found.faults.append("an event of no run arrived")
