"""The pictures of one run, in whatever order they are finished."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from safelight.deployments import Serving
from safelight.engine.events import EngineEvent, ImageReady
from safelight.engine.host import EngineHost
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams, RunStatus
from safelight.testing import FakeModel
from tests.lifecycle.test_models import ended, working
from tests.store.making import new_run

PAIR = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=2, num_images_per_prompt=2)


async def test_a_picture_is_named_as_long_as_another_of_its_run_is_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no row names is swept after an hour, and the run would end with a picture missing."""
    generate, named = EngineHost.generate, list[set[int]]()

    async def last_first(host: EngineHost, assignment: Assignment) -> AsyncIterator[EngineEvent]:
        ready = list[ImageReady]()
        async for event in generate(host, assignment):
            if not isinstance(event, ImageReady):
                yield event
                continue
            ready.append(event)
            if len(ready) == PAIR.num_images_per_prompt:
                for each in reversed(ready):
                    yield each
                    named.append({image.index for image in (await store.runs.get(assignment.run_id)).images})

    monkeypatch.setattr(EngineHost, "generate", last_first)
    async with working(tmp_path, lambda _: FakeModel(), a=Serving()) as store:
        run, _ = await store.runs.create(new_run(deployment="a", params=PAIR), max_queued=100)
        run = await ended(store, run.id)
    assert run.status is RunStatus.SUCCEEDED and [image.index for image in run.images] == [0, 1]
    assert named[0] == {1}
