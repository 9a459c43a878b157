"""Reads, each in a transaction of its own, on a few threads and connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from safelight.store.sqlite import carry_out

T = TypeVar("T")

NUM_READERS = 3
"""Threads that read at once, each with a connection; writers wait for none of them."""


class Reader:
    """Carries out what only reads."""

    def __init__(self, engine: Engine, take_turn: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine = engine
        self._take_turn = take_turn
        self._threads = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="store-read")
        # Kept, since to take one and give it back takes longer than most reads. The one that was used last goes first:
        # it has its statements and pages at hand.
        self._idle: list[Connection] = []
        self._glancing: Connection | None = None

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds. Raises DBAPIError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def glance(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds in an SQLite file, at once. Thread: the event loop's. Raises DBAPIError, also where it
        would have to wait for another process."""
        if self._glancing is None:
            self._glancing = self._engine.connect()
            carry_out(self._glancing, "PRAGMA busy_timeout=0")
        try:
            with self._glancing.begin():
                return work(self._glancing)
        except BaseException:
            self.stop_glancing()
            raise

    def stop_glancing(self) -> None:
        """Close the connection of `glance`. Thread: the event loop's."""
        if self._glancing is not None:
            _drop(self._glancing)
            self._glancing = None

    def close_idle(self) -> None:
        """Close the connections that nobody uses. Any thread."""
        with suppress(IndexError):
            while True:
                _drop(self._idle.pop())

    def close(self) -> None:
        """Wait for the reads under way."""
        self._threads.shutdown()
        self.close_idle()

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._take_turn():
            try:
                return self._read_once(work)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # The connection was an old one, of before the database was started again, and so are the others.
            self.close_idle()
            return self._read_once(work)

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        connection = self._take()
        try:
            with connection.begin():
                found = work(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return found

    def _take(self) -> Connection:
        with suppress(IndexError):
            return self._idle.pop()
        return self._engine.connect()


def _drop(connection: Connection) -> None:
    """Close it without a last word to a database that may be gone."""
    connection.invalidate()
    connection.close()
