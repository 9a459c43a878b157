"""A door and workers that share a database and a bucket, and no folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import s3
from tests.postgres import MISSING, find_programs
from tests.postgres import running as running_postgres

from .conftest import Server


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
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_worker_elsewhere_draws_what_the_door_took(
    start: Callable[..., Server], tmp_path: Path, shared: dict[str, str]
) -> None:
    door = start(flags=("--no-workers",), environment=shared)
    run_id = door.submit(num_inference_steps=4)
    assert door.processes("worker") == []
    assert door.run(run_id)["status"] == "queued"
    with worker(tmp_path / "elsewhere", shared) as elsewhere:
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == "working on cpu\n"
        door.wait_for_status(run_id, "succeeded")
        assert door.image(run_id).startswith(b"\x89PNG")
    assert not (tmp_path / "elsewhere" / "images").exists()
