"""What this machine has: asked of a short-lived process, so that a torch that is broken or slow harms nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

_TIMEOUT_SECONDS = 120.0
_QUESTION = """
import json, torch
gpus = [[f"cuda:{i}", torch.cuda.get_device_name(i)] for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "gpus": gpus, "num_threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The installed torch. `gpus` are device and name of each; `failure` says why it cannot be imported."""

    version: str = ""
    gpus: tuple[tuple[str, str], ...] = ()
    num_threads: int = 0
    failure: str | None = None


def look_at_torch() -> Torch:
    """Import torch elsewhere and say what came of it. Never raises."""
    question = [sys.executable, "-c", _QUESTION]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)  # noqa: S603 - our own interpreter
    except subprocess.TimeoutExpired:
        return Torch(failure=f"importing it took more than {_TIMEOUT_SECONDS:.0f} s")
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"its process ended with {answer.returncode}"]
        return Torch(failure=lines[-1])
    found = json.loads(answer.stdout)
    gpus = tuple((device, name) for device, name in found["gpus"])
    return Torch(version=found["version"], gpus=gpus, num_threads=found["num_threads"])


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
