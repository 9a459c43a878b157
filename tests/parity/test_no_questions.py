"""A step asks the device nothing, and what it brings goes by `upload`: else it waits until a GPU has
done all it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safelight.engine.copies import upload
from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, StepDone
from safelight.engine.models.graphs import CAPTURE_AT, GraphCompiler
from safelight.engine.models.loading import load_model
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams, SamplerName

from .conftest import Pair
from .replays import Replays

ASKING = {"aten::item", "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"}
"""What `.item()`, `bool(...)`, `torch.equal` and masks end in. (`.numpy()` passes by unseen on a CPU.)"""

MAKING = "aten::lift_fresh"
"""What tensors out of a list or an array begin with."""


class NoQuestions(TorchDispatchMode):
    """Raises where a value of a tensor is asked for. `num_made` counts the tensors that were made of
    the host's values."""

    num_made = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name = func.name()  # type: ignore[attr-defined]
        assert name not in ASKING, f"the step asks: {func}"
        self.num_made += name == MAKING
        return func(*args, **(kwargs or {}))


class Uploads:
    """Counts what goes to the device out of pinned memory."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.num += 1
        return upload(tensor, device)


@pytest.mark.parametrize("name", ["tiny_v2", "tiny_xl"])
def test_steps_of_all_samplers_together_ask_nothing(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair: Pair = request.getfixturevalue(name)
    model, capture, uploads = load_model(pair.folder), Replays(), Uploads()
    monkeypatch.setattr("safelight.engine.rows.upload", uploads)
    model = model.compiled(GraphCompiler(capture.open))
    engine = Engine(max_batch_rows=32)
    engine.load("model", model)
    for number, sampler in enumerate(SamplerName):
        guidance = 1.0 if number % 3 == 0 else 5.0
        params = RunParams(
            prompt="a cat", height=64, width=64, num_inference_steps=7, sampler=sampler, guidance_scale=guidance
        )
        engine.submit(Assignment(str(number), "model", params, (0,)))
    # The first one encodes prompts too, and the last of these captures a graph, which is no part of a step.
    for _ in range(CAPTURE_AT):
        engine.step()
    capture.rows.clear()
    uploads.num = 0
    with NoQuestions() as watched:
        told = [event for _ in range(3) for _, event in engine.step()]
    assert not [event for event in told if isinstance(event, AssignmentFailed)]
    assert len([event for event in told if isinstance(event, StepDone)]) >= 3 * len(SamplerName)
    assert len(capture.rows) == 3
    assert watched.num_made == uploads.num > 0, "everything else is made on the device"


def test_a_question_would_be_noticed() -> None:
    with NoQuestions() as watched:
        torch.tensor([1.0])
    assert watched.num_made == 1
    with torch.inference_mode(), NoQuestions(), pytest.raises(AssertionError, match="the step asks"):
        float(torch.ones(2).sum())
