"""Promise 14: whatever is sent to the door, what is stored is within the limits, and what is refused is not stored."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from safelight.deployments import Defaults, Deployment, Limits
from safelight.store.schema import runs
from tests.api.house import open_client
from tests.api.test_native import BODIES, assert_within
from tests.fuzz.door import Door, opened, settings_for

from .figures import Figure, check

DEPLOYMENTS = {
    f"side-{side}-steps-{steps}-images-{images}": Limits(
        max_side=side, max_pixels=max(64 * 64, side * side // 2), max_steps=steps, max_images=images
    )
    for side, steps, images in itertools.product((64, 512, 1024), (1, 50), (1, 8))
}
SMALLEST = Defaults(height=64, width=64, num_inference_steps=1)
WAYS = (int, float, str, lambda value: f" {value}.0 ", lambda value: f"+{value}", lambda value: -value)
"""How a number is written."""

HEADERS = {"Prefer": "respond-async", "Content-Type": "application/json"}


def around(limit: int, *, by: int = 1) -> st.SearchStrategy[object]:
    """Numbers at a limit and beside it, however they are written."""
    near = st.sampled_from([limit - by, limit, limit, limit + by])
    return st.builds(lambda value, write: write(value), near, st.sampled_from(WAYS))


def close_to(limits: Limits) -> st.SearchStrategy[dict[str, object]]:
    """Bodies that differ by little from what may be asked, one way or the other."""
    return st.fixed_dictionaries(
        {},
        optional={
            "height": around(limits.max_side, by=8),
            "width": around(limits.max_side, by=8),
            "num_inference_steps": around(limits.max_steps),
            "num_images_per_prompt": around(limits.max_images),
            "guidance_scale": around(50),
            "seed": around(2**53 - 1),
            "prompt": st.sampled_from([3999, 4000, 4001]).map(lambda length: "x" * length),
        },
    )


REQUESTS = st.one_of(st.tuples(st.just(name), BODIES | close_to(limits)) for name, limits in DEPLOYMENTS.items())
"""A deployment's name and a body for it."""


@dataclass
class Found:
    """What came of the bodies that were sent."""

    statuses: Counter[int] = field(default_factory=Counter)
    num_accepted: int = 0
    fault: str = ""


def limits(folder: Path, *, num_bodies: int) -> Figure:
    """Bodies of huge, negative, not finite, nested and mistyped values, and such that miss a limit by one, sent to a
    whole door; after each the store is looked at."""
    found = asyncio.run(_send_all(folder, num_bodies))
    num_sent = found.statuses.total()
    figure = f"{found.num_accepted} accepted, {int(bool(found.fault))} over a limit or refused and stored;"
    figure += f" {num_sent - found.num_accepted} refused"
    faults = [found.fault] if found.fault else check(found.num_accepted * 20 > num_sent, "too few were accepted")
    return Figure(
        "14", f"{num_sent} bodies at a limit, huge, negative, not finite, nested, posted to the door", figure, faults
    )


async def _send_all(folder: Path, num_bodies: int) -> Found:
    found, loop = Found(), asyncio.get_running_loop()
    deployments = [
        Deployment(name=name, version=0, model="pinhole", defaults=SMALLEST, limits=each)
        for name, each in DEPLOYMENTS.items()
    ]
    async with opened(settings_for(folder), deployments) as door, open_client(door.app, door.key) as client:

        @settings(
            max_examples=num_bodies,
            deadline=None,
            database=InMemoryExampleDatabase(),
            suppress_health_check=list(HealthCheck),
        )
        @given(REQUESTS)
        def send(request: tuple[str, dict[str, object]]) -> None:
            asyncio.run_coroutine_threadsafe(_send(door, client, found, *request), loop).result()

        try:
            await asyncio.to_thread(send)
        except AssertionError as error:
            found.fault = f"{error}"[:300] or "a run in the store is over a limit"
    return found


async def _send(door: Door, client: httpx2.AsyncClient, found: Found, name: str, body: dict[str, object]) -> None:
    content = json.dumps({"prompt": "x"} | body).encode()
    answer = await client.post(f"/{name}/predict", content=content, headers=HEADERS)
    found.statuses[answer.status_code] += 1
    if answer.status_code < 300:
        found.num_accepted += 1
        run = await door.store.runs.get(answer.json()["run_id"])
        assert_within(run.params, DEPLOYMENTS[name])
    else:
        assert 400 <= answer.status_code < 500, f"{answer.status_code} for {content[:100]!r}"
    num_stored = await door.store._database.read(_count_runs)
    assert num_stored == found.num_accepted, f"{num_stored} runs are stored, {found.num_accepted} were accepted"


def _count_runs(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(runs)).scalar_one())
