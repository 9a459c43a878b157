"""What benchmarks need to be true before they measure anything."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.engine import measure
from safelight.testing import FakeModel


def test_without_a_gpu_the_command_for_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"finds no GPU.*--tiny"):
        gpu.main()


def test_each_step_and_each_decode_is_measured_once() -> None:
    whole, predicting, decoding = measure(FakeModel(), 2, 64, 4)  # type: ignore[arg-type]
    assert len(whole) == len(predicting) and len(decoding) == 2
