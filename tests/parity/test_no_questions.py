"""A step asks the device nothing: whoever asks waits until a GPU has done all that it was given before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, StepDone
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams, SamplerName

from .conftest import Pair

ASKING = {"aten::item", "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"}
"""What `.item()`, `bool(...)`, `torch.equal` and masks end in. (`.numpy()` passes by unseen on a CPU.)"""


class NoQuestions(TorchDispatchMode):
    """Raises where a value of a tensor is asked for."""

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        assert func.name() not in ASKING, f"the step asks: {func}"  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


def test_steps_of_all_samplers_together_ask_nothing(tiny_v2: Pair) -> None:
    engine = Engine(max_batch_rows=32)
    engine.load("model", tiny_v2.ours)
    for number, sampler in enumerate(SamplerName):
        guidance = 1.0 if number % 3 == 0 else 5.0
        params = RunParams(
            prompt="a cat", height=64, width=64, num_inference_steps=5, sampler=sampler, guidance_scale=guidance
        )
        engine.submit(Assignment(str(number), "model", params, (0,)))
    # The first one encodes prompts too, which is no part of a step.
    engine.step()
    with NoQuestions():
        told = [event for _ in range(3) for _, event in engine.step()]
    assert not [event for event in told if isinstance(event, AssignmentFailed)]
    assert len([event for event in told if isinstance(event, StepDone)]) >= 3 * len(SamplerName)


def test_a_question_would_be_noticed() -> None:
    with torch.inference_mode(), NoQuestions(), pytest.raises(AssertionError, match="the step asks"):
        float(torch.ones(2).sum())
