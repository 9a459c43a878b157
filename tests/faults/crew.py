"""The processes of a server, forked from this warm one: real API, real workers, FakeModel. Killed and
started at will."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

import safelight.app
from safelight import supervisor
from safelight.api.app import create_app  # noqa: F401 - loaded here, so that no child has to
from safelight.config import Settings, dump_settings
from safelight.deployments import Deployment
from safelight.engine.environment import API_ENVIRONMENT, WORKER_ENVIRONMENT
from safelight.janitor import Janitor  # noqa: F401
from safelight.keys import Scope
from safelight.store import Store
from safelight.testing import FakeModel
from safelight.webhooks.deliverer import Deliverer  # noqa: F401
from safelight.worker import Worker  # noqa: F401

from . import child

FORK = multiprocessing.get_context("fork")
HUNG = safelight.app.HUNG_EXIT_STATUS

LEASE_SECONDS = 2.0

T = TypeVar("T")


def settings_for(folder: Path, database_url: str | None = None, **worker: Any) -> Settings:
    """Like an operator's, in a hurry: short leases, many tries."""
    usual = {
        "lease_seconds": LEASE_SECONDS,
        "heartbeat_seconds": LEASE_SECONDS / 4,
        "poll_seconds": 0.2,
        "progress_seconds": 0.1,
        "max_attempts": 50,
    }
    return Settings.model_validate(
        {
            "data": folder / "data",
            "store": {"database_url": database_url},
            "server": {"max_queued_runs": 100, "receive_timeout_seconds": 5},
            "worker": usual | worker,
            "webhooks": {
                "allowed_networks": [ip_network("127.0.0.0/8")],
                "timeout_seconds": 1.0,
                "max_concurrent_per_host": 16,
                "retry_seconds": (0, *([0.3] * 60)),
            },
        }
    )


def die_with_parent() -> None:
    """A harness that is stopped half-way leaves nobody behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def in_child(work: Callable[..., Awaitable[T]], *given: Any) -> T:
    """What `work` answers in a process of its own, so that this one stays without threads and connections."""
    mine, its = FORK.Pipe()

    def call() -> None:
        die_with_parent()
        try:
            its.send((True, asyncio.run(_call(work, *given))))
        except BaseException:
            its.send((False, traceback.format_exc()))

    process = FORK.Process(target=call)
    process.start()
    its.close()
    is_fine, answer = mine.recv()
    process.join()
    if not is_fine:
        raise AssertionError(answer)
    return answer


async def _call(work: Callable[..., Awaitable[T]], *given: Any) -> T:
    return await work(*given)


async def furnish(settings: Settings) -> str:
    """Deploy the model; the secret of a key."""
    async with await safelight.app.open_store(settings) as store:
        await store.deployments.deploy(Deployment(name="pinhole", version=0, model="pinhole"))
        _, secret = await store.keys.create("faults", scopes=frozenset({Scope.PREDICT, Scope.READ}))
        return secret


@dataclass
class Crew:
    """One API process and some workers. `own_deaths` lists who died without being told to."""

    settings: Settings
    folder: Path
    num_workers: int = 2
    model: Callable[[], FakeModel] = lambda: FakeModel(step_seconds=0.004)
    children: dict[str, int] = field(default_factory=dict)
    own_deaths: list[str] = field(default_factory=list)
    num_starts: int = 0

    def __post_init__(self) -> None:
        self.door = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"

    @property
    def workers(self) -> list[str]:
        return [f"w{number}" for number in range(self.num_workers)]

    def start_all(self) -> None:
        for name in ("api", *self.workers):
            self.start(name)

    def start(self, name: str) -> None:
        self.num_starts += 1
        pid = os.fork()
        if pid == 0:
            self._be(name)
        self.children[name] = pid

    def kill(self, name: str) -> None:
        """SIGKILL; the death must be that one and no other."""
        pid = self.children.pop(name)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            self.own_deaths.append(f"{name} had ended by itself (status {status})")

    def terminate(
        self, name: str, *, within: float, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[int | None, float]:
        """SIGTERM, and for the API a second one as the supervisor sends it. Exit status (None: killed) and seconds.

        `meanwhile` is called after the first.
        """
        pid, begun = self.children[name], time.monotonic()
        os.kill(pid, signal.SIGTERM)
        meanwhile()
        if name == "api":
            time.sleep(0.2)
            os.kill(pid, signal.SIGTERM)
        status = self.wait_for(name, within)
        if status is None:
            self.kill(name)
        return status, time.monotonic() - begun

    def wait_until_it_listens(self, name: str) -> None:
        """Until SIGTERM is more than the end of a process that has just begun."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for line in Path(f"/proc/{self.children[name]}/status").read_text().splitlines():
                if line.startswith("SigCgt:") and int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1):
                    return
            time.sleep(0.01)

    def wait_for(self, name: str, within: float) -> int | None:
        """The exit status of a child that ends by itself; None when it does not in time."""
        pid, deadline = self.children[name], time.monotonic() + within
        while time.monotonic() < deadline:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self.children[name]
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    def check(self) -> None:
        """Notes and replaces who died unasked, as a supervisor would."""
        for name, pid in list(self.children.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.own_deaths.append(f"{name} ended by itself (status {os.waitstatus_to_exitcode(status)})")
                self.start(name)

    def close(self) -> None:
        for name in list(self.children):
            self.kill(name)
        self.door.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[Crew]:
        self.start_all()
        try:
            yield self
        finally:
            self.close()

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def _be(self, name: str) -> NoReturn:
        die_with_parent()
        torch.set_num_threads(1)
        if name != "api":
            self.door.close()
        child.be(name, self.settings, self.folder, self.door, model=self.model)


@dataclass
class FreshCrew(Crew):
    """Its processes are programs of their own, with a server's environment and nothing of this one's memory. Their
    model is `child.quick_model`."""

    def _be(self, name: str) -> NoReturn:
        die_with_parent()
        self.door.set_inheritable(True)
        environment = API_ENVIRONMENT if name == "api" else WORKER_ENVIRONMENT
        given = (name, dump_settings(self.settings), str(self.folder), str(self.door.fileno()))
        os.execve(sys.executable, [sys.executable, "-P", child.__file__, *given], {**os.environ, **environment})


@dataclass
class WholeCrew(Crew):
    """One `serve`: the supervisor of a server, which starts the others. Their model is `child.slow_model`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The supervisor opens it, at the same address after each start.
        port = self.door.getsockname()[1]
        self.door.close()
        self.settings = self.settings.model_copy(
            update={"server": self.settings.server.model_copy(update={"port": port})}
        )

    def start_all(self) -> None:
        self.start("serve")

    def _be(self, name: str) -> NoReturn:
        die_with_parent()
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        supervisor.start_child = _start_supervised
        os._exit(supervisor.Supervisor(self.settings, announce=lambda what: None).serve())


def _start_supervised(
    arguments: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """As the supervisor does, but for the worker's model."""
    program = ["-P", child.__file__] if arguments[0] == "worker" else ["-m", "safelight.app"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdin=subprocess.PIPE,
        pass_fds=pass_fds,
        env={**os.environ, **environment},
        start_new_session=True,
    )


async def opened(settings: Settings) -> Store:
    return await safelight.app.open_store(settings)
