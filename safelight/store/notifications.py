"""Hints between processes that something changed: unix datagrams in a folder. A hint may be lost; polling is the truth."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

MAX_ADDRESS_BYTES = 100
"""The kernel takes 108 bytes, BSDs 104."""

MAX_DATAGRAM_BYTES = 8192
MAX_TOPICS = 128
"""Topics in one datagram. Linux keeps ten datagrams for an ear by default, so hints of one moment travel together."""

RETRY_SECONDS = 0.02
"""An ear that is full is told once more after this."""


class Listener:
    """Waits for hints on some topics. A hint that comes between two waits ends the next one at once."""

    def __init__(self) -> None:
        self._was_hinted = asyncio.Event()

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - the answer says which of the two it was
        """Wait for a hint, at most `timeout` seconds. True when one came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._was_hinted.wait()
        was_hinted = self._was_hinted.is_set()
        self._was_hinted.clear()
        return was_hinted

    def wake(self) -> None:
        self._was_hinted.set()


class Notifications:
    """One process's ear in the folder, and its voice to the ears of the others. Use it on the event loop's thread."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "hints"
        self._data = data
        self._socket: socket.socket | None = None
        self._address: Path | None = None
        self._listeners: dict[str, set[Listener]] = {}
        self._unsent: dict[str, None] = {}

    def start(self) -> None:
        """Open this process's socket. Where none can be had, hints stay within the process and polling does the rest."""
        for folder in (self._data / "hints", _short_folder(self._data)):
            address = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
            if len(os.fsencode(address)) > MAX_ADDRESS_BYTES or not _is_private(folder):
                continue
            ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            ear.setblocking(False)
            try:
                ear.bind(str(address))
            except OSError:
                ear.close()
                continue
            self._folder, self._address, self._socket = folder, address, ear
            asyncio.get_running_loop().add_reader(ear.fileno(), self._receive)
            return

    def publish(self, topic: str) -> None:
        """Wake whoever listens to `topic`, here and in other processes. Never raises, never blocks."""
        self._wake(topic)
        if self._socket is not None:
            if not self._unsent:
                asyncio.get_running_loop().call_soon(self._send_all)
            self._unsent[topic] = None

    @contextmanager
    def listen(self, *topics: str) -> Iterator[Listener]:
        """A listener to `topics`, for as long as the context lasts. Start listening first, then look at the store."""
        listener = Listener()
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            for topic in topics:
                self._forget(topic, listener)

    def close(self) -> None:
        """Close the socket and take its name out of the folder."""
        if self._socket is not None and self._address is not None:
            self._send_all()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._address.unlink(missing_ok=True)
        self._socket = self._address = None

    def _forget(self, topic: str, listener: Listener) -> None:
        listeners = self._listeners.get(topic, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(topic, None)

    def _wake(self, topic: str) -> None:
        for listener in self._listeners.get(topic, ()):
            listener.wake()

    def _receive(self) -> None:
        assert self._socket is not None, "the reader is removed before the socket is closed"
        with suppress(OSError):
            while True:
                for topic in self._socket.recv(MAX_DATAGRAM_BYTES).decode(errors="replace").split("\n"):
                    self._wake(topic)

    def _send_all(self) -> None:
        topics, self._unsent = list(self._unsent), {}
        if self._socket is None or self._address is None or not topics:
            return
        try:
            others = [entry.path for entry in os.scandir(self._folder) if entry.name != self._address.name]
        except OSError:
            return
        for first in range(0, len(topics), MAX_TOPICS):
            datagram = "\n".join(topics[first : first + MAX_TOPICS]).encode()
            for other in others:
                self._send(datagram, other)

    def _send(self, datagram: bytes, address: str, *, may_retry: bool = True) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(datagram, address)
        except BlockingIOError:
            if may_retry:
                retry = partial(self._send, datagram, address, may_retry=False)
                asyncio.get_running_loop().call_later(RETRY_SECONDS, retry)
        except ConnectionRefusedError:
            # Its process died without closing.
            with suppress(OSError):
                Path(address).unlink(missing_ok=True)
        except OSError:
            # It was just closed: polling will find what changed.
            return


def _short_folder(data: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()
    return Path(tempfile.gettempdir()) / f"safelight-{os.getuid()}-{digest[:16]}"


def _is_private(folder: Path) -> bool:
    """Whether `folder` is there (made if need be) and nobody else's."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and found.st_uid == os.getuid()
