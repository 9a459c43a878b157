"""A real `safelight serve` as a child, stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

from safelight.errors import ConfigError

_ADDRESS = re.compile(r"https?://\S+")
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_NUM_LOG_LINES = 12

_SETTINGS = {
    # Deliveries to this very machine are refused otherwise, and the demo's receiver is here.
    "SAFELIGHT_WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    # A slow machine shall be slow, not answered 504.
    "SAFELIGHT_SERVER__SYNC_TIMEOUT_SECONDS": "3600",
    "SAFELIGHT_WORKER__DRAIN_SECONDS": "1",
}
_OWN = ("SAFELIGHT_CONFIG", "SAFELIGHT_DATA", "SAFELIGHT_STORE__", "SAFELIGHT_SERVER__", "SAFELIGHT_WORKER__")


def environment() -> dict[str, str]:
    """That of this process, without what would take the demo to another server's store, folders or runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}


@contextlib.contextmanager
def running_server(data: Path, log: Path) -> Iterator[str]:
    """The address of a server on `data`, on loopback and a free port. Raises ConfigError with the end of its log."""
    serve = [sys.executable, "-m", "safelight", "serve", "--data", str(data), "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as errors:
        server = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
            serve,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment() | _SETTINGS | {"PYTHONUNBUFFERED": "1"},
            # Ctrl+C reaches this process alone, which then stops the server in order.
            start_new_session=True,
        )
    try:
        yield _address(server, log)
    finally:
        _stop(server)


def last_lines(log: Path) -> str:
    """The end of the server's log, indented, for an error message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_LOG_LINES:]
    return f"the end of its log, {log}:\n" + "\n".join(f"  {line}" for line in lines)


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    lines: Queue[str | None] = Queue()
    threading.Thread(target=_read, args=(server, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=_START_SECONDS)) is not None:
            if line.startswith("serving at ") and (found := _ADDRESS.search(line)):
                return found[0]
    except Empty:
        raise ConfigError(f"the server was not ready after {_START_SECONDS:.0f} s; {last_lines(log)}") from None
    raise ConfigError(f"the server did not start; {last_lines(log)}")


def _read(server: subprocess.Popen[bytes], lines: Queue[str | None]) -> None:
    """Passes on what the server says; goes on reading to the end, so that the server never waits for a full pipe."""
    assert server.stdout is not None
    for line in server.stdout:
        lines.put(line.decode(errors="replace"))
    lines.put(None)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask, ask again (which ends it at once), then do not ask any more."""
    for _ in range(2):
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
            return
    server.kill()
    server.wait()
