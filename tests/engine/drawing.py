"""Run an engine to its end and collect what each run was told."""

from __future__ import annotations

from collections.abc import Callable

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, EngineEvent, ImageReady, Pixels
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams

Told = dict[str, list[EngineEvent]]


def assign(
    run_id: str, params: RunParams, *, model_key: str = "fake@1", indices: tuple[int, ...] | None = None
) -> Assignment:
    """All images of the run unless told which."""
    return Assignment(
        run_id, model_key, params, tuple(range(params.num_images_per_prompt)) if indices is None else indices
    )


def run_out(engine: Engine, *, between: Callable[[int], None] = lambda step: None, max_steps: int = 1000) -> Told:
    """Step until there is nothing left; `between` is called before each step with its number."""
    told: Told = {}
    for step in range(max_steps):
        if not engine.has_work:
            return told
        between(step)
        for run_id, event in engine.step():
            told.setdefault(run_id, []).append(event)
    raise AssertionError("the engine does not come to an end")


def pictures_of(events: list[EngineEvent]) -> dict[int, Pixels]:
    return {event.index: event.pixels for event in events if isinstance(event, ImageReady)}


def code_of(events: list[EngineEvent]) -> str:
    """The error code that a failed run ended with."""
    end = events[-1]
    assert isinstance(end, AssignmentFailed), end
    return end.error.code
