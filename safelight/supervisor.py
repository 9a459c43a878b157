"""The process that `safelight serve` is: one API process, one worker process per device, restarted when they die. No torch, no store."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from safelight.config import Settings, dump_settings
from safelight.engine.environment import WORKER_ENVIRONMENT
from safelight.errors import ConfigError

log = logging.getLogger("safelight.supervisor")

_TICK_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_AFTER_SECONDS = 10.0
_API_GRACE_SECONDS = 5.0


@dataclass(slots=True)
class _Child:
    """One supervised process, and when it may be started again."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_seconds: float = 0.0
    not_before: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Binds the address, so that it stays taken and connections wait while an API process is restarted."""

    def __init__(self, settings: Settings, *, announce: Callable[[str], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._num_signals = 0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Raises ConfigError when the address or the data folder is taken."""
        with _locked(self._settings.data), _listening(self._settings.server.host, self._settings.server.port) as door:
            host, port = door.getsockname()[:2]
            api = self._api_child(door)
            workers = [self._worker_child(device) for device in self._settings.worker.devices or _devices()]
            previous = {number: signal.signal(number, self._count) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._watch([api, *workers], door, f"http://{_in_url(host)}:{port}")
                return self._stop(api, workers)
            finally:
                for child in (api, *workers):
                    _kill(child)
                for number, action in previous.items():
                    signal.signal(number, action)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    def _api_child(self, door: socket.socket) -> _Child:
        return _Child("api", ("api", str(door.fileno())), {})

    def _worker_child(self, device: str) -> _Child:
        return _Child(f"worker {device}", ("worker", device), dict(WORKER_ENVIRONMENT))

    def _watch(self, children: list[_Child], door: socket.socket, address: str) -> None:
        """Keep the children alive until a signal; announce the address once the API answers."""
        is_announced = False
        while self._num_signals == 0:
            for child in children:
                if not child.is_alive:
                    self._revive(child, door)
            if not is_announced and _is_ready(address):
                self._announce(address)
                is_announced = True
            time.sleep(_TICK_SECONDS)

    def _revive(self, child: _Child, door: socket.socket) -> None:
        now = time.monotonic()
        if child.process is not None:
            self._bury(child, now)
        if now < child.not_before:
            return
        child.process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
            [sys.executable, "-m", "safelight.app", *child.arguments],
            stdin=subprocess.PIPE,
            pass_fds=(door.fileno(),) if child.name == "api" else (),
            env=os.environ | child.environment,
            # A Ctrl+C in the terminal reaches the supervisor alone: it decides who stops when.
            start_new_session=True,
        )
        child.started_at = now
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # The pipe stays open: its end tells the child that this process is gone, however it went.
            child.process.stdin.write(dump_settings(self._settings).encode() + b"\n")
            child.process.stdin.flush()

    def _bury(self, child: _Child, now: float) -> None:
        """Note a death, and wait longer before the next start each time the child dies young."""
        assert child.process is not None
        is_young = now - child.started_at < _HEALTHY_AFTER_SECONDS
        child.backoff_seconds = min(max(2 * child.backoff_seconds, 0.5), _LONGEST_BACKOFF_SECONDS) if is_young else 0.0
        child.not_before = now + child.backoff_seconds
        extra = {"child": child.name, "exit_status": child.process.returncode, "again_in": child.backoff_seconds}
        log.error("a process died and is started again", extra=extra)
        child.process = None

    def _stop(self, api: _Child, workers: list[_Child]) -> int:
        """Refuse new work, let running work end, then close the door. A second signal ends at once."""
        log.info("stopping; a second signal ends at once")
        for child in (api, *workers):
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + self._settings.worker.drain_seconds + _API_GRACE_SECONDS
        self._wait(workers, deadline)
        _signal(api, signal.SIGTERM)
        self._wait([api], time.monotonic() + _API_GRACE_SECONDS)
        is_clean = not any(child.is_alive for child in (api, *workers))
        return 0 if is_clean else 1

    def _wait(self, children: list[_Child], deadline: float) -> None:
        while any(child.is_alive for child in children) and time.monotonic() < deadline and self._num_signals < 2:
            time.sleep(_TICK_SECONDS / 2)


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the data folder: worker ids are reused over restarts, so two servers must not share one folder."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another server runs on {data}; stop it, or name another folder with --data") from error
        yield


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
            door.listen(2048)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"cannot listen on {host}:{port}: {reason}; name another port with --port, or 0 for a free one"
            ) from error
        yield door


def _devices() -> tuple[str, ...]:
    """Every GPU of this machine, else the CPU. Asked of a short-lived process, since only it needs torch."""
    code = "import torch; print(*(f'cuda:{i}' for i in range(torch.cuda.device_count())))"
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/kfd").exists():
        return ("cpu",)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return tuple(answer.stdout.split()) or ("cpu",)


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=1) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None and child.is_alive:
        child.process.send_signal(number)


def _kill(child: _Child) -> None:
    if child.process is not None and child.is_alive:
        child.process.kill()
        child.process.wait()
