"""A real server of this package: `safelight serve` with its processes, on loopback, with its own data folder."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest

from safelight.keys import Scope
from safelight.store import Store
from tests import lean

START_SECONDS = 40

T = TypeVar("T")


class Server:
    """One `safelight serve`, or another command that prints an address. `processes()` finds its
    children by the parent's pid."""

    def __init__(
        self,
        data: Path,
        *,
        command: Sequence[str] = ("serve", "pinhole"),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.data = data
        self._environment = lean.environment() | (environment or {})
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safelight", *command, "--data", str(data), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.url = self._address()
            self.key = self._create_key()
        except BaseException:
            self.stop()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def _address(self) -> str:
        def find() -> str | None:
            assert self.process.poll() is None, self.log
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
            return found[0] if found else None

        return wait_for(find, START_SECONDS)

    def _create_key(self) -> str:
        url = self._environment.get("SAFELIGHT_STORE__DATABASE_URL")

        async def create() -> str:
            async with await Store.open(self.data, database_url=url) as store:
                return (await store.keys.create(f"test-{uuid.uuid4()}", scopes=frozenset({Scope.PREDICT})))[1]

        return asyncio.run(create())

    def processes(self, role: str) -> list[int]:
        """Pids of the living children in `role`, `api` or `worker`."""
        command = ["pgrep", "-P", str(self.process.pid), "-f", f"safelight.app {role}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def client(self, *, timeout: float = 120) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers={"Authorization": self.key}, timeout=timeout, trust_env=False)

    def predict(self, **params: object) -> httpx2.Response:
        with self.client() as client:
            return client.post("/pinhole/predict", json={"prompt": "a red circle", "num_inference_steps": 4} | params)

    def submit(self, **params: object) -> str:
        """Start a run without waiting for it."""
        body = {"prompt": "a red circle", "height": 256, "width": 256} | params
        with self.client() as client:
            answer = client.post("/pinhole/predict", json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == (200 if "webhook_endpoint" in params else 202), answer.text
        return str(answer.json()["run_id"])

    def run(self, run_id: str) -> dict[str, object]:
        with self.client() as client:
            answer = client.get(f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return dict(json.loads(answer.content))

    def image(self, run_id: str, index: int = 0) -> bytes:
        with self.client() as client:
            return client.get(f"/runs/{run_id}/images/{index}").content

    def wait_for_status(self, run_id: str, *statuses: str, timeout: float = 90) -> dict[str, object]:
        def reached() -> dict[str, object] | None:
            run = self.run(run_id)
            return run if run["status"] in statuses else None

        return wait_for(reached, timeout)

    def wait_for_steps(self, run_id: str, num_steps: int = 1) -> None:
        def reached() -> bool:
            run = self.run(run_id)
            assert run["status"] in ("queued", "running"), f"ended too early to be killed in the middle: {run}"
            return int(run["progress"]["steps_done"]) >= num_steps  # type: ignore[index]

        wait_for(reached, 60)

    def kill_everything(self) -> None:
        """SIGKILL, parent first so that nobody restarts anybody."""
        pids = [self.process.pid, *self.processes("api"), *self.processes("worker")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise


def wait_for(question: Callable[[], T | None], timeout: float) -> T:
    """The first answer that is not None or False. Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.05)
    pytest.fail(f"not within {timeout} s: {question}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that are stopped when the test ends."""
    with ExitStack() as stack:

        def start_one(data: Path | None = None, **options: object) -> Server:
            server = Server(data or tmp_path / "data", **options)  # type: ignore[arg-type]
            stack.callback(server.stop)
            return server

        yield start_one


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server shared by the tests of a module that do it no harm."""
    server = Server(tmp_path_factory.mktemp("data"))
    yield server
    server.stop()
