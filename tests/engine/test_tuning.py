"""What is asked for is obeyed; what is left open is settled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from safelight.engine.tuning import tune


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_asked_for_is_obeyed() -> None:
    tuning = tune(device="cpu", dtype="float32", num_threads=2)
    assert (tuning.dtype, tuning.num_threads, torch.get_num_threads()) == (torch.float32, 2, 2)


def test_a_run_can_be_told_what_it_was_drawn_with() -> None:
    provenance = tune(device="cpu", dtype="bfloat16", num_threads=1).provenance
    assert (provenance.torch, provenance.dtype, provenance.num_threads) == (torch.__version__, "bfloat16", 1)
    assert provenance.device.startswith("cpu (") and provenance.safelight


def test_what_is_left_open_is_measured() -> None:
    tuning = tune(device="cpu", dtype="auto", num_threads=0)
    assert tuning.dtype in (torch.float32, torch.bfloat16)
    assert tuning.num_threads == torch.get_num_threads() >= 1
