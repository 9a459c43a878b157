"""A door and workers that share a database and a bucket, and no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests import lean, s3
from tests.postgres import MISSING, find_programs
from tests.postgres import running as running_postgres

from .conftest import Server, wait_for


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, str]]:
    """The settings that all machines have, as environment."""
    if find_programs() is None:
        pytest.skip(MISSING)
    with running_postgres() as postgres, s3.running() as bucket:
        yield s3.CREDENTIALS | {
            "SAFELIGHT_STORE__DATABASE_URL": postgres.url(),
            "SAFELIGHT_STORE__IMAGES_URL": bucket.make_bucket(),
            "SAFELIGHT_STORE__IMAGES_ENDPOINT": bucket.endpoint,
        }


@contextmanager
def worker(data: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "safelight", "worker", "--device", "cpu", "--data", str(data)]
    process = subprocess.Popen(command, env=lean.environment() | environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_worker_elsewhere_draws_what_the_door_took(
    start: Callable[..., Server], tmp_path: Path, shared: dict[str, str]
) -> None:
    door = start(command=("serve", "pinhole", "--no-workers"), environment=shared)
    run_id = door.submit(num_inference_steps=4)
    assert door.processes("worker") == []
    assert door.run(run_id)["status"] == "queued"
    with worker(tmp_path / "elsewhere", shared) as elsewhere:
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == "working on cpu\n"
        door.wait_for_status(run_id, "succeeded")
        assert door.image(run_id).startswith(b"\x89PNG")
    assert not (tmp_path / "elsewhere" / "images").exists()


def test_ray_starts_a_killed_worker_again_and_its_run_is_finished(
    start: Callable[..., Server], tmp_path: Path, shared: dict[str, str]
) -> None:
    pytest.importorskip("ray")
    deploy = [sys.executable, "-m", "safelight", "deploy", "pinhole", "--data", str(tmp_path / "data")]
    subprocess.run(deploy, check=True, env=os.environ | shared)
    server = start(command=("cluster", "--workers", "1"), environment=shared)
    assert server.predict().status_code == 200

    run_id = server.submit(num_inference_steps=60)
    server.wait_for_steps(run_id)
    (process,) = processes_of("worker cpu", shared)
    for pid in (parent_of(process), process):
        os.kill(pid, signal.SIGKILL)
    server.wait_for_status(run_id, "succeeded", timeout=300)
    assert server.image(run_id).startswith(b"\x89PNG")

    (door,) = processes_of("api", shared)
    os.kill(door, signal.SIGKILL)
    wait_for(lambda: processes_of("api", shared) not in ([], [door]), 60)
    assert wait_for(lambda: answer_of(server), 120) == 200
    assert server.stop() == 0
    assert processes_of("", shared) == []


def answer_of(server: Server) -> int | None:
    """The status of a predict, None while nobody listens."""
    try:
        return server.predict().status_code
    except httpx2.TransportError:
        return None


def processes_of(role: str, environment: dict[str, str]) -> list[int]:
    """Pids of a server's processes on any of the machines that are one here, by what they were started with."""
    found = subprocess.run(["pgrep", "-f", f"safelight.app {role}"], capture_output=True, text=True, check=False)
    mine = environment["SAFELIGHT_STORE__IMAGES_ENDPOINT"].encode()
    return [int(pid) for pid in found.stdout.split() if mine in environment_of(pid)]


def environment_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
