"""The thread that writes. What waits together is committed together: a commit waits for the disk, however much is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")

MAX_TOGETHER = 64
"""Writes in one commit: the first of them waits for all the others."""


MAX_TIMES_ALONE = 4


class CommitInDoubt(Exception):
    """The connection was lost in the middle of a commit: nobody can tell whether it happened."""


class WriterClosed(Exception):
    """The store was closed before this was asked of it."""


@dataclass(frozen=True, slots=True)
class _Write:
    work: Callable[[Connection], Any]
    future: Future[Any] = field(default_factory=Future)


class Writer:
    """Takes writes in arrival order and answers each once it is durable. One that fails undoes only itself.

    `is_passing` tells which errors of the database may be gone when the same is done again.
    """

    def __init__(
        self,
        engine: Engine,
        take_turn: Callable[[], AbstractContextManager[None]],
        *,
        is_passing: Callable[[DBAPIError], bool],
    ) -> None:
        self._engine = engine
        self._take_turn = take_turn
        self._is_passing = is_passing
        self._waiting: SimpleQueue[_Write | None] = SimpleQueue()
        self._is_closed = False
        self._thread = Thread(target=self._serve, name="store-write", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Put `work` in the queue. It may run again, undone each time but the last. Cancelling works until it is begun."""
        write = _Write(work)
        if self._is_closed:
            write.future.set_exception(WriterClosed())
        else:
            self._waiting.put(write)
        return cast("Future[T]", write.future)

    def close(self, timeout_seconds: float) -> None:
        """Do what waits, then end the thread."""
        self._is_closed = True
        self._waiting.put(None)
        self._thread.join(timeout_seconds)

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            writes = [first]
            try:
                with self._take_turn():
                    writes += self._others()
                    self._commit([write for write in writes if write.future.set_running_or_notify_cancel()])
            except BaseException as error:
                for write in writes:
                    if write.future.running() or write.future.set_running_or_notify_cancel():
                        write.future.set_exception(error)

    def _others(self) -> Iterator[_Write]:
        """What else waits by now."""
        for _ in range(MAX_TOGETHER - 1):
            try:
                write = self._waiting.get_nowait()
            except Empty:
                return
            if write is None:
                self._waiting.put(None)
                return
            yield write

    def _commit(self, writes: Sequence[_Write]) -> None:
        """One transaction for all of `writes`; where one of them fails, one for each half, and so on down to the one.

        A savepoint around each would keep those together that are well, at two more statements for every write.
        """
        if len(writes) == 1:
            self._commit_alone(writes[0])
        elif writes and not self._commit_together(writes):
            half = len(writes) // 2
            self._commit(writes[:half])
            self._commit(writes[half:])

    def _commit_together(self, writes: Sequence[_Write]) -> bool:
        """False where one of them failed: then none is done. Raises CommitInDoubt."""
        try:
            with self._transaction() as connection:
                results = [write.work(connection) for write in writes]
        except CommitInDoubt:
            raise
        except Exception:
            # Whichever it was is done again by itself in the end, and told then what is wrong with it.
            return False
        for write, result in zip(writes, results, strict=True):
            write.future.set_result(result)
        return True

    def _commit_alone(self, write: _Write) -> None:
        for times_left in reversed(range(MAX_TIMES_ALONE)):
            try:
                with self._transaction() as connection:
                    result = write.work(connection)
            except BaseException as error:
                if times_left and isinstance(error, DBAPIError) and self._is_passing(error):
                    continue
                write.future.set_exception(error)
            else:
                write.future.set_result(result)
            return

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Raises CommitInDoubt where doing all of it again might do it twice."""
        is_worked_out = False
        try:
            with self._engine.begin() as connection:
                yield connection
                is_worked_out = True
        except DBAPIError as error:
            if is_worked_out and error.connection_invalidated:
                raise CommitInDoubt from error
            raise
