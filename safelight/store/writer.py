"""The thread that writes. What waits together is committed together: a commit waits for the disk, however much is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

T = TypeVar("T")

MAX_TOGETHER = 64
"""Writes in one commit: the first of them waits for all the others."""


@dataclass(frozen=True, slots=True)
class _Write:
    work: Callable[[Connection], Any]
    future: Future[Any] = field(default_factory=Future)


class Writer:
    """Takes writes in arrival order and answers each once it is durable. One that fails undoes only itself."""

    def __init__(self, engine: Engine, take_turn: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine = engine
        self._take_turn = take_turn
        self._waiting: SimpleQueue[_Write | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name="store-write", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Put `work` in the queue. It may run twice, the first time undone. Cancelling works until it is begun."""
        write = _Write(work)
        self._waiting.put(write)
        return cast("Future[T]", write.future)

    def close(self, timeout_seconds: float) -> None:
        """Do what waits, then end the thread."""
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
                    if not write.future.done():
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
        """One transaction for all of `writes`; one for each where one of them breaks it for all."""
        if len(writes) == 1:
            self._commit_alone(writes[0])
            return
        try:
            with self._engine.begin() as connection:
                ends = [_attempt(connection, write) for write in writes]
        except DBAPIError:
            for write in writes:
                self._commit_alone(write)
            return
        for end in ends:
            end()

    def _commit_alone(self, write: _Write) -> None:
        try:
            with self._engine.begin() as connection:
                result = write.work(connection)
        except BaseException as error:
            write.future.set_exception(error)
        else:
            write.future.set_result(result)


def _attempt(connection: Connection, write: _Write) -> Callable[[], None]:
    """Do one of several writes. How to answer it, once all are durable."""
    try:
        with connection.begin_nested():
            result = write.work(connection)
    except DBAPIError as error:
        if not isinstance(error, IntegrityError):
            raise
        failure: Exception = error
    except Exception as error:
        failure = error
    else:
        return lambda: write.future.set_result(result)
    return lambda: write.future.set_exception(failure)
