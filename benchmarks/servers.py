"""Servers under measurement, as processes of their own on loopback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

PINHOLE = Path(__file__).parent.parent / "safelight" / "pinhole"


MODEL, DEVICE = "BENCHMARK_MODEL", "BENCHMARK_DEVICE"
"""Variables of the environment: a folder that is drawn with in pinhole's place, and the peers' torch device."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send requests, and as whom."""

    name: str
    url: str
    key: str
    pid: int
    start_seconds: float


def model_name() -> str:
    """Of what is drawn with, for the heads of tables."""
    return Path(os.environ[MODEL]).name if MODEL in os.environ else "pinhole"


@contextmanager
def safelight(name: str = "Safelight", *, model: str = "pinhole", **environment: str) -> Iterator[Target]:
    """`safelight serve` on a fresh data folder. `start_seconds` is until it says where it listens."""
    if model == "pinhole" and MODEL in os.environ:
        environment["SAFELIGHT_MODELS__PINHOLE"] = os.environ[MODEL]
    with tempfile.TemporaryDirectory() as data:
        began = time.monotonic()
        with serving(Path(data), model, **environment) as (url, pid):
            start_seconds = time.monotonic() - began
            create = [sys.executable, "-m", "safelight", "keys", "create", "bench", "--data", data]
            create += ["--scope", "predict", "--scope", "read"]
            key = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
            yield Target(name, url, key, pid, start_seconds)


def wait_until_compiled(target: Target) -> None:
    """Until Safelight draws with the networks that stay: a deterministic run waits for them."""
    request = {"prompt": "", "deterministic": True, "num_inference_steps": 1, "height": 64, "width": 64}
    url, headers = f"{target.url}/pinhole/predict", {"Authorization": target.key}
    httpx2.post(url, json=request, headers=headers, timeout=600, trust_env=False).raise_for_status()


@contextmanager
def serving(data: Path, *models: str, **environment: str) -> Iterator[tuple[str, int]]:
    """`safelight serve` on a data folder: address and pid."""
    command = [sys.executable, "-m", "safelight", "serve", *models, "--data", str(data), "--port", "0"]
    # Into a file: a server whose log nobody reads out of a pipe stands still once the pipe is full.
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment)
        try:
            yield _address(process, Path(log.name)), process.pid
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    while (found := re.search(r"http://127[.\d]+:\d+", said := log.read_text())) is None:
        assert process.poll() is None, said
        time.sleep(0.01)
    return found[0]


@contextmanager
def peer(name: str, module: str, *arguments: str, **environment: str) -> Iterator[Target]:
    """A peer under benchmarks/peers/ that answers the predict contract at /pinhole/predict."""
    port = _free_port()
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=os.environ | environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            time.sleep(0.1)
        yield Target(name, url, "none", process.pid, time.monotonic() - began)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
