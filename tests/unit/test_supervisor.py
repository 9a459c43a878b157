"""Which devices a server draws on when nobody names them."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from safelight import supervisor


@pytest.mark.parametrize(
    ("printed", "said", "reason"),
    [("", "Traceback\nImportError: libcuda is too old\n", "ImportError: libcuda is too old"), ("\n", "", "finds none")],
)
def test_a_machine_whose_gpu_torch_cannot_use_draws_on_the_cpu_and_says_why(
    printed: str, said: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout=printed, stderr=said)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: answer)
    with caplog.at_level(logging.WARNING):
        assert supervisor._devices() == ("cpu",)
    assert reason in caplog.text and "safelight doctor" in caplog.text


def test_every_gpu_is_drawn_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout="cuda:0 cuda:1\n", stderr="a warning")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: answer)
    assert supervisor._devices() == ("cuda:0", "cuda:1") and not caplog.records
