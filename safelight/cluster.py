"""The processes of a server as actors of a Ray cluster: where each runs, and nothing else. The only importer of ray.

The door stays on the machine that this was started on, which has the address and `secret.key`. Ray
starts dead actors again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from safelight.config import Settings, dump_settings, parse_settings
from safelight.engine.environment import API_ENVIRONMENT, WORKER_ENVIRONMENT
from safelight.errors import ConfigError
from safelight.supervisor import (
    API_GRACE_SECONDS,
    API_LOCK,
    WORKER_LOCK,
    address_of,
    answers,
    instruct_child,
    listening,
    locked,
    start_child,
)

log = logging.getLogger("safelight.cluster")

_RESTART_SECONDS = 1.0


class _Place:
    """Holds one process. When that dies by itself this does too, so that Ray starts both again."""

    def __init__(self, child: subprocess.Popen[bytes], settings: Settings) -> None:
        instruct_child(child, settings)
        self._child = child
        self._is_ending = False
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        self._child.wait()
        if not self._is_ending:
            _die()

    def terminate(self) -> None:
        """Ask the process to end; it is not started again."""
        self._is_ending = True
        self._child.terminate()

    def is_ended(self, within_seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(within_seconds)
        return self._child.returncode is not None


class _Door(_Place):
    def __init__(self, text: str) -> None:
        settings = parse_settings(text)
        with contextlib.ExitStack() as stack:
            try:
                door = stack.enter_context(listening(settings.server.host, settings.server.port))
            except ConfigError:
                # The process of a killed predecessor still has the address, for a moment.
                _die()
            super().__init__(
                start_child(("api", str(door.fileno())), API_ENVIRONMENT, pass_fds=(door.fileno(),)), settings
            )


class _Worker(_Place):
    """Of GPUs the process sees the one that Ray gave to this."""

    def __init__(self, text: str, device: str, worker_id: str) -> None:
        super().__init__(start_child(("worker", device, worker_id), WORKER_ENVIRONMENT), parse_settings(text))


def _die() -> None:
    time.sleep(_RESTART_SECONDS)
    os._exit(1)


def run(
    settings: Settings, *, ray_address: str | None, num_workers: int | None, announce: Callable[[str, int], None]
) -> int:
    """Serve until SIGTERM or SIGINT; `announce` gets the address and the number of workers. Raises ConfigError."""
    settings = settings.model_copy(update={"data": settings.data.resolve()})
    with locked(settings.data, API_LOCK, WORKER_LOCK), _joined(ray_address):
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        settings, address = _with_port(settings)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        door = _placed(_Door, settings, num_cpus=0, scheduling_strategy=here)
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        device, has_gpu = ("cuda:0", 1) if num_gpus else ("cpu", 0)
        names = [f"{platform.node()}/ray-{index}" for index in range(num_workers or num_gpus or 1)]
        workers = [_placed(_Worker, settings, device, name, num_cpus=1, num_gpus=has_gpu) for name in names]
        while not stop.wait(0.1) and not answers(f"{address}/readyz"):
            pass
        if not stop.is_set():
            announce(address, len(workers))
        stop.wait()
        return _end(door, workers, settings.worker.drain_seconds)


def _with_port(settings: Settings) -> tuple[Settings, str]:
    """A free port is chosen once: the door keeps it when Ray starts it again. Raises ConfigError when it is taken."""
    with listening(settings.server.host, settings.server.port) as door:
        server = settings.server.model_copy(update={"port": door.getsockname()[1]})
        return settings.model_copy(update={"server": server}), address_of(door)


def _placed(kind: type[_Place], settings: Settings, *arguments: str, **options: object) -> Any:
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, **options)(kind)
    return actor.remote(dump_settings(settings), *arguments)


def _end(door: Any, workers: list[Any], drain_seconds: float) -> int:
    """In the supervisor's order: refuse new work, let running work end, then close the door."""
    within = drain_seconds + API_GRACE_SECONDS
    try:
        ray.get([actor.terminate.remote() for actor in (door, *workers)], timeout=within)
        ended: list[bool] = ray.get([worker.is_ended.remote(within) for worker in workers], timeout=2 * within)
        ray.get(door.terminate.remote(), timeout=API_GRACE_SECONDS)
        return (
            0 if all([*ended, ray.get(door.is_ended.remote(API_GRACE_SECONDS), timeout=2 * API_GRACE_SECONDS)]) else 1
        )
    except RayError as error:
        log.error("not all could be stopped in order", extra={"reason": type(error).__name__})
        return 1


@contextlib.contextmanager
def _joined(ray_address: str | None) -> Iterator[None]:
    try:
        ray.init(address=ray_address, include_dashboard=False)
    except ConnectionError as error:
        raise ConfigError(f"the Ray cluster cannot be reached: {error}; start one with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()
