"""The process that `safelight serve` and `safelight worker` are: an API process, a worker for each device, or both;
dead ones start again.

No torch, no store.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from safelight.config import Settings, dump_settings
from safelight.engine.environment import API_ENVIRONMENT, WORKER_ENVIRONMENT
from safelight.errors import ConfigError

log = logging.getLogger("safelight.supervisor")

_TICK_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_AFTER_SECONDS = 10.0

API_GRACE_SECONDS = 12.0
"""More than the door has for its callers and its deliveries after that."""

API_LOCK = "serve.lock"
WORKER_LOCK = "worker.lock"


@dataclass(slots=True)
class _Child:
    """One supervised process, and when it may be started again."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_seconds: float = 0.0
    not_before: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_longer(self, now: float) -> float:
        """Put the next start off, for longer each time; for how long."""
        self.backoff_seconds = min(max(2 * self.backoff_seconds, 0.5), _LONGEST_BACKOFF_SECONDS)
        self.not_before = now + self.backoff_seconds
        return self.backoff_seconds


class Supervisor:
    """Binds the address, so that it stays taken and connections wait while an API process is restarted."""

    def __init__(self, settings: Settings, *, announce: Callable[[str], None]) -> None:
        """`announce` is called once: with the address when the API answers, or with the devices that are worked on."""
        self._settings = settings
        self._announce = announce
        self._num_signals = 0

    def serve(self, *, with_workers: bool = True, prepare: Callable[[], None] = lambda: None) -> int:
        """Serve until SIGTERM or SIGINT. Raises ConfigError when the address or the data folder is taken.

        `prepare` is called while the new processes import what they need; they touch nothing before it is done.
        """
        server, locks = self._settings.server, (API_LOCK, WORKER_LOCK) if with_workers else (API_LOCK,)
        with locked(self._settings.data, *locks), listening(server.host, server.port) as door:
            address = address_of(door)
            workers = self._worker_children(self._devices()) if with_workers else []
            return self._supervise(
                [_api_child(door)],
                workers,
                partial(answers, address + ("/readyz" if with_workers else "/healthz")),
                address,
                prepare,
            )

    def work(self) -> int:
        """Draw until SIGTERM or SIGINT, without an API. Raises ConfigError when the data folder is taken."""
        with locked(self._settings.data, WORKER_LOCK):
            devices = self._devices()
            return self._supervise([], self._worker_children(devices), lambda: True, ", ".join(devices))

    def _devices(self) -> tuple[str, ...]:
        return self._settings.worker.devices or _devices()

    def _supervise(
        self,
        api: list[_Child],
        workers: list[_Child],
        is_up: Callable[[], bool],
        what: str,
        prepare: Callable[[], None] = lambda: None,
    ) -> int:
        previous = {number: signal.signal(number, self._count) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            # Not the workers too: all of them together would be slower to answer.
            for child in api:
                self._start(child)
            prepare()
            for child in api:
                self._instruct(child)
            self._watch([*api, *workers], is_up, what)
            return self._stop(api, workers)
        finally:
            for child in (*api, *workers):
                _kill(child)
            for number, action in previous.items():
                signal.signal(number, action)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    def _worker_children(self, devices: tuple[str, ...]) -> list[_Child]:
        return [_Child(f"worker {device}", ("worker", device), dict(WORKER_ENVIRONMENT)) for device in devices]

    def _watch(self, children: list[_Child], is_up: Callable[[], bool], what: str) -> None:
        """Keep the children alive until a signal; announce `what` once all is up."""
        is_announced = False
        while self._num_signals == 0:
            for child in children:
                if not child.is_alive:
                    self._revive(child)
            if not is_announced and is_up():
                self._announce(what)
                is_announced = True
            time.sleep(_TICK_SECONDS)

    def _revive(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            self._bury(child, now)
        if now < child.not_before:
            return
        try:
            self._start(child)
        except OSError as error:
            # No memory or no process to be had for now: the others go on meanwhile.
            extra = {"child": child.name, "reason": str(error), "again_in": child.wait_longer(now)}
            log.error("a process cannot be started", extra=extra)
        else:
            self._instruct(child)

    def _start(self, child: _Child) -> None:
        child.process = start_child(child.arguments, child.environment, pass_fds=child.pass_fds)
        child.started_at = time.monotonic()

    def _instruct(self, child: _Child) -> None:
        assert child.process is not None
        instruct_child(child.process, self._settings)

    def _bury(self, child: _Child, now: float) -> None:
        """Note a death, and wait longer before the next start each time the child dies young."""
        assert child.process is not None
        if now - child.started_at < _HEALTHY_AFTER_SECONDS:
            child.wait_longer(now)
        else:
            child.backoff_seconds, child.not_before = 0.0, now
        extra = {"child": child.name, "exit_status": child.process.returncode, "again_in": child.backoff_seconds}
        log.error("a process died and is started again", extra=extra)
        child.process = None

    def _stop(self, api: list[_Child], workers: list[_Child]) -> int:
        """Refuse new work, let running work end, then close the door. A second signal ends at once."""
        log.info("stopping; a second signal ends at once")
        for child in (*api, *workers):
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + self._settings.worker.drain_seconds + API_GRACE_SECONDS
        self._wait(workers, deadline)
        for child in api:
            _signal(child, signal.SIGTERM)
        self._wait(api, time.monotonic() + API_GRACE_SECONDS)
        is_clean = not any(child.is_alive for child in (*api, *workers))
        return 0 if is_clean else 1

    def _wait(self, children: list[_Child], deadline: float) -> None:
        while any(child.is_alive for child in children) and time.monotonic() < deadline and self._num_signals < 2:
            time.sleep(_TICK_SECONDS / 2)


def start_child(
    arguments: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process of a server (see `app`), which waits for `instruct_child`. Keep what this returns: when its
    standard input closes, the process stops."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
        [sys.executable, "-m", "safelight.app", *arguments],
        stdin=subprocess.PIPE,
        pass_fds=pass_fds,
        env={**os.environ, **environment},
        # A Ctrl+C in the terminal reaches the supervisor alone: it decides who stops when.
        start_new_session=True,
    )


def instruct_child(process: subprocess.Popen[bytes], settings: Settings) -> None:
    """Give a new process its settings."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        # The pipe stays open: its end tells the child that this process is gone, however it went.
        process.stdin.write(dump_settings(settings).encode() + b"\n")
        process.stdin.flush()


def _api_child(door: socket.socket) -> _Child:
    return _Child("api", ("api", str(door.fileno())), dict(API_ENVIRONMENT), pass_fds=(door.fileno(),))


@contextlib.contextmanager
def locked(data: Path, *names: str) -> Iterator[None]:
    """Hold the data folder: worker ids are reused over restarts, so two servers must not share one folder."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        for name in names:
            lock = held.enter_context((data / name).open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                message = f"another server runs on {data}; stop it, or name another folder with --data"
                raise ConfigError(message) from error
        yield


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that accepts connections. Raises ConfigError when the address is taken."""
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
    if devices := tuple(answer.stdout.split()):
        return devices
    reason = (answer.stderr.strip().splitlines() or ["torch finds none"])[-1]
    log.warning(
        "this machine has a GPU driver but no GPU to draw on (%s): drawing on the CPU; try safelight doctor", reason
    )
    return ("cpu",)


def address_of(door: socket.socket) -> str:
    """Where this machine reaches `door`."""
    host, port = door.getsockname()[:2]
    return f"http://{_in_url(host)}:{port}"


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past the proxy that the environment may name: it cannot see this machine's own addresses."""


def answers(url: str) -> bool:
    """Whether our own API says yes there."""
    try:
        # Whatever address it listens on, the door knows itself by this name.
        with DIRECTLY.open(urllib.request.Request(url, headers={"Host": "localhost"}), timeout=1) as answer:  # noqa: S310
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
