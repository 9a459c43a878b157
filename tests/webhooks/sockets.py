"""Every connection that this process begins, seen where Python asks the kernel for it, under any network library.

A loop of another kind than asyncio's own would connect past this.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_watchers: list[list[str]] = []
_is_installed = False


@contextmanager
def watching_sockets() -> Iterator[list[str]]:
    """The addresses that sockets are told to connect to meanwhile."""
    global _is_installed
    if not _is_installed:
        sys.addaudithook(_note)
        _is_installed = True
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop), f"{type(loop)} may connect without Python's sockets"
    connected: list[str] = []
    _watchers.append(connected)
    try:
        yield connected
    finally:
        _watchers.remove(connected)


def _note(event: str, given: tuple[object, ...]) -> None:
    if event != "socket.connect" or not _watchers:
        return
    connection, address = given
    # Those of a path are of this process to itself.
    if isinstance(address, tuple) and isinstance(connection, socket.socket):
        for connected in _watchers:
            connected.append(str(address[0]))
