"""Hints between the processes of one machine: unix datagrams in a folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

MAX_ADDRESS_BYTES = 100
"""The kernel takes 108 bytes, BSDs 104."""

MAX_DATAGRAM_BYTES = 8192
MAX_TOPICS = 128
"""Topics in one datagram. Linux keeps ten datagrams for an ear by default, so hints of one moment travel together."""

RETRY_SECONDS = 0.02
"""An ear that is full is told once more after this."""


class HintSockets:
    """One process's ear in the folder, and its voice to the ears of the others."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "hints"
        self._data = data
        self._socket: socket.socket | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._address: Path | None = None

    def open(self, receive: Callable[[Sequence[str]], None]) -> None:
        """Open this process's socket, where one can be had."""
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
            self._event_loop = asyncio.get_running_loop()
            self._event_loop.add_reader(ear.fileno(), self._hear, ear, receive)
            return

    def send(self, topics: Sequence[str]) -> None:
        """Tell every ear in the folder."""
        own = self._address
        if own is None:
            return
        try:
            others = [entry.path for entry in os.scandir(self._folder) if entry.name != own.name]
        except OSError:
            return
        for first in range(0, len(topics), MAX_TOPICS):
            datagram = "\n".join(topics[first : first + MAX_TOPICS]).encode()
            for other in others:
                self._send(datagram, other)

    def close(self) -> None:
        """Close the socket and take its name out of the folder."""
        if self._socket is not None and self._address is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._address.unlink(missing_ok=True)
        self._socket = self._address = None

    def _hear(self, ear: socket.socket, receive: Callable[[Sequence[str]], None]) -> None:
        with suppress(OSError):
            while True:
                receive(ear.recv(MAX_DATAGRAM_BYTES).decode(errors="replace").split("\n"))

    def _send(self, datagram: bytes, address: str, *, may_retry: bool = True) -> None:
        ear, loop = self._socket, self._event_loop
        if ear is None or loop is None:
            return
        try:
            ear.sendto(datagram, address)
        except BlockingIOError:
            if may_retry:
                retry = partial(self._send, datagram, address, may_retry=False)
                # The loop may be gone when a process ends.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(loop.call_later, RETRY_SECONDS, retry)
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
