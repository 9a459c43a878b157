"""What happens to runs when processes are killed, clients leave and receivers are down. Real processes,
real signals."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from standardwebhooks import Webhook

from tests.lifecycle.conftest import Server, wait_for

SMALL = {"height": 128, "width": 128}
"""Seconds of drawing, not minutes: with many steps it is still killed in the middle."""

LONG = SMALL | {"num_inference_steps": 60, "num_images_per_prompt": 2, "seed": 7, "deterministic": True}
"""Deterministic, so that not a bit may differ: how many share a forward pass hangs on what the worker has measured."""

LOOPBACK = {
    "SAFELIGHT_WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "SAFELIGHT_WEBHOOKS__RETRY_SECONDS": "[0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]",
}

Start = Callable[..., Server]


def pixels(server: Server, run_id: str, index: int = 0) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(server.image(run_id, index)))).astype(int)


def assert_same_pictures(server: Server, one: str, other: str) -> None:
    for index in range(LONG["num_images_per_prompt"]):
        assert np.array_equal(pixels(server, one, index), pixels(server, other, index))


def test_a_killed_worker_costs_time_and_nothing_else(start: Start) -> None:
    server = start()
    run_id = server.submit(**LONG)
    server.wait_for_steps(run_id)
    [pid] = server.processes("worker")

    os.kill(pid, signal.SIGKILL)

    run = server.wait_for_status(run_id, "succeeded", "failed")
    assert run["status"] == "succeeded", run
    assert server.processes("worker") != [pid]
    undisturbed = server.submit(**LONG)
    server.wait_for_status(undisturbed, "succeeded")
    assert_same_pictures(server, run_id, undisturbed)


def test_a_run_goes_on_after_everything_was_killed_and_started_again(start: Start) -> None:
    first = start()
    run_id = first.submit(**LONG)
    first.wait_for_steps(run_id)

    first.kill_everything()
    second = start()

    run = second.wait_for_status(run_id, "succeeded", "failed")
    assert run["status"] == "succeeded", run
    undisturbed = second.submit(**LONG)
    second.wait_for_status(undisturbed, "succeeded")
    assert_same_pictures(second, run_id, undisturbed)


def test_a_run_that_begins_from_a_picture_survives_everything_being_killed(start: Start) -> None:
    server = start()
    with server.client() as client:
        body = {"prompt": "a red circle", "height": 64, "width": 64, "num_inference_steps": 2}
        first = client.post("/pinhole/predict", json=body).json()
    picture, run_id = first["result"][0], first["run_id"]
    masked = server.submit(
        init_image=picture, mask=picture, strength=0.5, height=256, width=256, num_inference_steps=60
    )
    copied = server.submit(init_image=f"run:{run_id}/0", height=64, width=64, num_inference_steps=4)
    server.kill_everything()
    again = start(server.data)
    for each in (masked, copied):
        assert again.wait_for_status(each, "succeeded", "failed")["status"] == "succeeded"


def test_a_killed_api_process_comes_back_at_the_same_address_while_the_run_goes_on(start: Start) -> None:
    server = start()
    run_id = server.submit(**LONG)
    server.wait_for_steps(run_id)
    [pid] = server.processes("api")

    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.processes("api") not in ([], [pid]), 20)

    assert server.wait_for_status(run_id, "succeeded", "failed")["status"] == "succeeded"


def test_children_do_not_outlive_a_killed_supervisor(start: Start) -> None:
    server = start()
    children = server.processes("api") + server.processes("worker")
    assert len(children) == 2

    server.process.kill()

    wait_for(lambda: not any(_is_alive(pid) for pid in children), 20)


def test_a_client_that_hangs_up_does_not_lose_its_run(start: Start) -> None:
    server = start()
    with server.client(timeout=1.0) as client, pytest.raises(httpx2.TimeoutException):
        client.post("/pinhole/predict", json={"prompt": "a red circle", **LONG})

    with server.client() as client:
        [run] = client.get("/runs").json()["runs"]
    assert server.wait_for_status(run["id"], "succeeded", "failed")["status"] == "succeeded"


def test_sigterm_lets_running_work_end_and_exits_zero(start: Start) -> None:
    server = start()
    run_id = server.submit(num_inference_steps=60, num_images_per_prompt=1)
    server.wait_for_steps(run_id)

    assert server.stop() == 0

    again = start()
    assert again.run(run_id)["status"] == "succeeded"
    assert "requeued" not in again.log


def test_a_second_sigterm_ends_at_once_and_the_run_goes_on_at_the_next_start(start: Start) -> None:
    server = start()
    run_id = server.submit(**SMALL, num_inference_steps=100, num_images_per_prompt=3)
    server.wait_for_steps(run_id)

    server.process.terminate()
    wait_for(lambda: "a second signal ends at once" in server.log, 10)
    server.process.terminate()
    server.process.wait(timeout=5)

    again = start()
    assert again.wait_for_status(run_id, "succeeded", "failed", timeout=180)["status"] == "succeeded"


def test_new_work_is_refused_while_the_server_drains(start: Start) -> None:
    server = start()
    run_id = server.submit(**SMALL, num_inference_steps=100, num_images_per_prompt=3)
    server.wait_for_steps(run_id)
    server.process.terminate()

    def refused() -> httpx2.Response | None:
        answer = server.predict()
        return answer if answer.status_code == 503 else None

    answer = wait_for(refused, 10)
    assert answer.json()["code"] == "stopping"
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_second_server_on_the_same_folder_is_refused(start: Start) -> None:
    import subprocess
    import sys

    server = start()
    command = [sys.executable, "-m", "safelight", "serve", "--data", str(server.data), "--port", "0"]
    second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert second.returncode != 0
    assert "another server runs on" in second.stderr


def test_a_receiver_that_is_down_gets_its_delivery_when_it_is_back(start: Start) -> None:
    server = start(environment=LOOPBACK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_id = server.submit(num_inference_steps=2, webhook_endpoint=f"http://127.0.0.1:{port}/hook")
    server.wait_for_status(run_id, "succeeded")

    received: list[tuple[dict[str, str], bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((dict(self.headers), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    try:
        wait_for(lambda: received, 20)
    finally:
        receiver.shutdown()
    [(headers, body)] = received
    message = Webhook(_webhook_secret(server)).verify(body, {name.lower(): value for name, value in headers.items()})
    assert message["run_id"] == run_id
    assert message["status_code"] == 200
    assert len(message["result"]) == 1


def _webhook_secret(server: Server) -> str:
    import subprocess
    import sys

    command = [sys.executable, "-m", "safelight", "webhooks", "secret", "--data", str(server.data)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _is_alive(pid: int) -> bool:
    """Orphans that have ended may stay as zombies until the system's first process looks."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
