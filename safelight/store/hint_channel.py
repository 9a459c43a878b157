"""Hints between processes on any machines: a channel of the PostgreSQL database that all of them have open."""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, cast

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from psycopg import Connection, Notify
    from sqlalchemy.pool import PoolProxiedConnection

log = logging.getLogger(__name__)

CHANNEL = "safelight"
MAX_TOPICS = 128
"""Topics in one message: PostgreSQL takes 8000 bytes."""

RETRY_SECONDS = 1.0
CLOSE_SECONDS = 2.0


class HintChannel:
    """A connection that listens and tells, and its thread. While the database is away nothing is heard,
    and polling does it.

    Apart from the store's transactions: a transaction that tells makes all others that tell wait for its commit.
    """

    def __init__(self, engine: Engine) -> None:
        """Joins the channel where the database answers, else later. Thread: any; it may block for seconds."""
        self._engine = engine
        self._unsent: SimpleQueue[str] = SimpleQueue()
        self._is_closing = False
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._connection = self._join()

    def open(self, receive: Callable[[Sequence[str]], None]) -> None:
        """Start the thread."""
        self._receive = receive
        self._event_loop = asyncio.get_running_loop()
        self._alarm, self._ring = os.pipe2(os.O_NONBLOCK)
        self._thread = Thread(target=self._serve, name="store-hints", daemon=True)
        self._thread.start()

    def send(self, topics: Sequence[str]) -> None:
        """Leave it to the thread, as long as there is one."""
        if self._is_closing:
            return
        for first in range(0, len(topics), MAX_TOPICS):
            self._unsent.put("\n".join(topics[first : first + MAX_TOPICS]))
        self._wake()

    def close(self) -> None:
        """Send what is still here, then end the thread."""
        self._is_closing = True
        self._wake()
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            os.close(self._alarm)
            os.close(self._ring)

    def _wake(self) -> None:
        # A full pipe wakes as well.
        with suppress(BlockingIOError):
            os.write(self._ring, b"!")

    def _join(self) -> Connection | None:
        from psycopg import Error  # noqa: PLC0415 - only those who have PostgreSQL have its driver

        borrowed: PoolProxiedConnection | None = None
        try:
            borrowed = self._engine.raw_connection()
            connection = cast("Connection", borrowed.driver_connection)
            connection.autocommit = True
            connection.add_notify_handler(partial(self._hear, connection))
            connection.execute(f"LISTEN {CHANNEL}".encode())
        except (DBAPIError, Error) as error:
            log.debug("no hints for now", extra={"reason": type(error).__name__})
            if borrowed is not None:
                # It commits each statement by itself by now, and must not be another's.
                borrowed.invalidate()
            return None
        self._borrowed = borrowed
        return connection

    def _serve(self) -> None:
        """Thread: its own."""
        from psycopg import Error  # noqa: PLC0415

        while not self._is_closing:
            if self._connection is None:
                self._wait(None)
                self._connection = self._join()
                continue
            with suppress(Error):
                self._exchange(self._connection)
            # It listens, and must not be another's.
            self._borrowed.invalidate()
            self._connection = None

    def _exchange(self, connection: Connection) -> None:
        while True:
            is_last = self._is_closing
            self._tell(connection)
            connection.pgconn.consume_input()
            while (heard := connection.pgconn.notifies()) is not None:
                self._pass_on(heard.be_pid, heard.extra, me=connection.info.backend_pid)
            if is_last:
                return
            self._wait(connection)

    def _tell(self, connection: Connection) -> None:
        with suppress(Empty):
            while True:
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, self._unsent.get_nowait()])

    def _wait(self, connection: Connection | None) -> None:
        poll = select.poll()
        poll.register(self._alarm, select.POLLIN)
        if connection is not None:
            poll.register(connection.fileno(), select.POLLIN)
        poll.poll(None if connection is not None else RETRY_SECONDS * 1000)
        with suppress(BlockingIOError):
            os.read(self._alarm, 4096)

    def _hear(self, connection: Connection, notify: Notify) -> None:
        """What came in while something else was asked."""
        self._pass_on(notify.pid, notify.payload.encode(), me=connection.info.backend_pid)

    def _pass_on(self, sender: int, payload: bytes, *, me: int) -> None:
        # What comes in before `open`, nobody waits for yet.
        if sender != me and self._event_loop is not None:
            # The loop may be gone when a process ends.
            with suppress(RuntimeError):
                self._event_loop.call_soon_threadsafe(self._receive, payload.decode(errors="replace").split("\n"))
