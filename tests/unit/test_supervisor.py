"""Which devices a server draws on when nobody names them."""

from __future__ import annotations

import http.server
import logging
import subprocess
import threading
import time
from pathlib import Path

import pytest

from safelight import supervisor
from safelight.config import Settings


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


def test_a_process_that_cannot_be_started_is_tried_again_and_the_others_live_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    troubles = [OSError(11, "Resource temporarily unavailable")]

    def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        if troubles:
            raise troubles.pop()
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    monkeypatch.setattr(supervisor, "start_child", start)
    watching = supervisor.Supervisor(Settings(data=tmp_path), announce=lambda what: None)
    child = supervisor._Child("worker cpu", ("worker", "cpu"), {})
    watching._revive(child)
    assert "a process cannot be started" in caplog.text and not child.is_alive
    assert child.not_before > time.monotonic()
    watching._revive(child)
    assert not child.is_alive, "not before its time"
    child.not_before = 0.0
    watching._revive(child)
    assert child.is_alive
    supervisor._kill(child)


def test_every_gpu_is_drawn_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout="cuda:0 cuda:1\n", stderr="a warning")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: answer)
    assert supervisor._devices() == ("cuda:0", "cuda:1") and not caplog.records


def test_its_own_door_is_found_past_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Yes(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # As the guard of the door: it knows no other name.
            self.send_response(200 if self.headers["Host"] == "localhost" else 421)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Yes) as door:
        answering = threading.Thread(target=door.handle_request)
        answering.start()
        assert supervisor.answers(f"http://127.0.0.1:{door.server_port}/health")
        answering.join()
