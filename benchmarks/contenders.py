"""Who can be measured by benchmarks.serving: Safelight, and what people would use instead, each at its
best settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.servers import Target, peer, safelight, wait_until_compiled
from safelight.engine.environment import WORKER_ENVIRONMENT

BEST_IN_TORCH = ("--dtype", "auto", "--threads", "-1")
BEST = (*BEST_IN_TORCH, "--backend", "openvino")

EXPORTED = "PINHOLE_OPENVINO"
"""Names a folder with pinhole as benchmarks/peers/genai_lock.py says how to export it."""

Start = Callable[[str], AbstractContextManager[Target]]


@dataclass(frozen=True, slots=True)
class Contender:
    """`needs` are packages beyond Safelight's own; `variable` one of the environment that says where something lies."""

    name: str
    title: str
    start: Start
    needs: tuple[str, ...] = ()
    variable: str | None = None

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed, and the variable that is not set."""
        packages = [package for package in self.needs if find_spec(package) is None]
        return packages + [name for name in (self.variable,) if name and name not in os.environ]


def _peer(module: str, *arguments: str, is_tuned: bool = True) -> Start:
    environment = dict(WORKER_ENVIRONMENT) if is_tuned else {}
    return lambda title: peer(title, module, *arguments, **environment)


def _safelight(backend: str) -> Start:
    @contextmanager
    def start(title: str) -> Iterator[Target]:
        with safelight(title, SAFELIGHT_ENGINE__BACKEND=backend) as target:
            wait_until_compiled(target)
            yield target

    return start


CONTENDERS = (
    Contender("lock", "lock around diffusers, fp32", _peer("diffusers_lock", is_tuned=False)),
    Contender("lock-best", "lock around diffusers, tuned", _peer("diffusers_lock", *BEST_IN_TORCH)),
    Contender(
        "lock-openvino", "lock around diffusers on OpenVINO", _peer("diffusers_lock", *BEST), needs=("openvino",)
    ),
    Contender(
        "lock-genai",
        "lock around OpenVINO GenAI",
        _peer("genai_lock", "--folder", os.environ.get(EXPORTED, "")),
        needs=("openvino_genai",),
        variable=EXPORTED,
    ),
    Contender("litserve", "LitServe, batches, torch", _peer("litserve_batches", *BEST_IN_TORCH), needs=("litserve",)),
    Contender(
        "litserve-openvino",
        "LitServe, batches, OpenVINO",
        _peer("litserve_batches", *BEST),
        needs=("litserve", "openvino"),
    ),
    Contender("ray", "Ray Serve, batches, torch", _peer("ray_batches", *BEST_IN_TORCH), needs=("ray",)),
    Contender("ray-openvino", "Ray Serve, batches, OpenVINO", _peer("ray_batches", *BEST), needs=("ray", "openvino")),
    Contender("safelight-torch", "Safelight, torch", _safelight("torch")),
    Contender("safelight", "Safelight", _safelight("auto")),
)


def chosen(names: list[str]) -> list[Contender]:
    """Those of these names, in the order of the table; all without names. What is not installed is said
    and left out."""
    found = []
    for contender in CONTENDERS:
        if names and contender.name not in names:
            continue
        if contender.missing:
            needed = " ".join(contender.missing)
            print(
                f"{contender.title} is left out: {needed} is missing (pip install 'safelight[bench]'; for GenAI"
                " see peers/genai_lock.py)"
            )
        else:
            found.append(contender)
    return found
