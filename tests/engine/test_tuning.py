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


def test_a_gpu_that_only_emulates_bfloat16_runs_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert tune(device="cuda:1", dtype="auto", num_threads=0).dtype is torch.float16
    assert tune(device="cuda:1", dtype="bfloat16", num_threads=0).dtype is torch.bfloat16
    assert set(chosen) == {torch.device("cuda:1")}
