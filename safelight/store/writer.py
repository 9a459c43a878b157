"""The thread that writes. What waits together is committed together: a commit waits for the disk,
however much is in it. Some need not wait for it, and are synced once they are answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from safelight.store.late import begin_late, hints_of, write_late

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TOGETHER = 64
"""Writes in one commit: the first of them waits for all the others."""

MAX_TIMES_ALONE = 4
"""How often a write is done by itself while its errors are passing ones."""

RowLock = tuple[str, ...]
"""The table and the row that a write locks first, and what it may wait for next. Empty: it is not known."""


class CommitInDoubt(Exception):
    """The connection was lost in the middle of a commit: nobody can tell whether it happened."""


class WriterClosed(Exception):
    """The store was closed before this was asked of it."""


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """A transaction that is asked for, and where its result or error goes."""

    work: Callable[[Connection], T]
    answer: asyncio.Future[T]
    first_lock: RowLock = ()
    may_be_unsynced: bool = False
    """It need not be on the disk when it is answered, as long as it is soon after."""
    is_taken: bool = False
    """The writer has begun it, or who asked took it back: whoever comes first."""


@dataclass(frozen=True, slots=True)
class _Done:
    write: Write[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Takes writes in arrival order and answers each once it is durable. One that fails undoes only itself.

    Where all of a transaction may be unsynced, `is_unsynced` of its connection's info says so as it begins, and `sync`
    follows its answer. `hint` gets the topics of what was committed. `is_passing` tells which errors of the database
    may be gone when the same is done again. Where the database `has_row_locks`, the writes of one commit are done in
    the order of what they lock first.
    """

    def __init__(
        self,
        engine: Engine,
        take_turn: Callable[[], AbstractContextManager[None]],
        *,
        sync: Callable[[Connection], None],
        hint: Callable[[Sequence[str]], None],
        is_passing: Callable[[DBAPIError], bool],
        has_row_locks: bool,
    ) -> None:
        self._engine = engine
        self._sync = sync
        self._hint = hint
        self._take_turn = take_turn
        self._is_passing = is_passing
        self._has_row_locks = has_row_locks
        self._waiting: SimpleQueue[Write[Any] | None] = SimpleQueue()
        self._taking = Lock()
        self._is_closed = False
        # Kept, since to take one and give it back takes as long as a small transaction.
        self._connection: Connection | None = None
        self._thread = Thread(target=self._serve, name="store-write", daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[Connection], T], first_lock: RowLock = (), *, may_be_unsynced: bool = False
    ) -> Write[T]:
        """Put `work` in the queue. It may run again, undone each time but the last. Thread: the event loop's."""
        write = Write(work, asyncio.get_running_loop().create_future(), first_lock, may_be_unsynced)
        if self._is_closed:
            write.answer.set_exception(WriterClosed())
        else:
            self._waiting.put(write)
        return write

    def take_back(self, write: Write[Any]) -> bool:
        """Whether it had not begun; then it never will."""
        return bool(self._take([write]))

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
                    writes = self._take(writes)
                    if self._has_row_locks:
                        writes.sort(key=_place)
                    self._commit(writes)
            except BaseException as error:
                _tell([_Done(write, error=error) for write in writes])
        self._disconnect()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self, writes: Sequence[Write[Any]]) -> list[Write[Any]]:
        """Those that nobody has taken yet."""
        with self._taking:
            taken = [write for write in writes if not write.is_taken]
            for write in taken:
                write.is_taken = True
        return taken

    def _others(self) -> Iterator[Write[Any]]:
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

    def _commit(self, writes: Sequence[Write[Any]]) -> None:
        """One transaction for all of `writes`; where one of them fails, one for each half, and so on down to the one.

        A savepoint around each would keep those together that are well, at two more statements for every write.
        """
        if len(writes) == 1:
            self._commit_alone(writes[0])
        elif writes and not self._commit_together(writes):
            half = len(writes) // 2
            self._commit(writes[:half])
            self._commit(writes[half:])

    def _commit_together(self, writes: Sequence[Write[Any]]) -> bool:
        """False where one of them failed: then none is done. Raises CommitInDoubt, and whatever keeps a transaction
        from beginning: it would keep each of them."""
        has_begun = False
        try:
            with self._transaction(writes) as (connection, done):
                has_begun = True
                done += [_Done(write, write.work(connection)) for write in writes]
        except CommitInDoubt:
            raise
        except Exception as error:
            if not has_begun and not self._may_pass(error):
                raise
            # Whichever it was is done again by itself in the end, and told then what is wrong with it.
            return False
        return True

    def _commit_alone(self, write: Write[Any]) -> None:
        for times_left in reversed(range(MAX_TIMES_ALONE)):
            try:
                with self._transaction([write]) as (connection, done):
                    done.append(_Done(write, write.work(connection)))
            except BaseException as error:
                if times_left and self._may_pass(error):
                    continue
                _tell([_Done(write, error=error)])
            return

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, DBAPIError) and self._is_passing(error)

    @contextmanager
    def _transaction(self, writes: Sequence[Write[Any]]) -> Iterator[tuple[Connection, list[_Done]]]:
        """What is put into the list is answered once it is committed. Raises CommitInDoubt where doing all of it again
        might do it twice."""
        is_unsynced = all(write.may_be_unsynced for write in writes)
        done: list[_Done] = []
        is_worked_out = False
        try:
            connection = self._connected()
            connection.info["is_unsynced"] = is_unsynced
            with connection.begin():
                begin_late(connection)
                yield connection, done
                write_late(connection)
                is_worked_out = True
        except BaseException as error:
            # A commit that failed may have left it within its transaction; the pool knows how to take it out of that.
            self._disconnect()
            if is_worked_out and isinstance(error, DBAPIError) and error.connection_invalidated:
                raise CommitInDoubt from error
            raise
        self._pass_on(hints_of(connection))
        _tell(done)
        if is_unsynced:
            self._sync(connection)

    def _pass_on(self, topics: Sequence[str]) -> None:
        try:
            self._hint(topics)
        except Exception:
            # What is committed is committed: whoever was to be woken will look by himself.
            log.exception("a hint could not be sent")


def _place(write: Write[Any]) -> tuple[bool, RowLock]:
    """Where it comes in its commit. All processes lock in this order, so that no two hold what the other waits for.

    Last comes what names no row, such as claims. They pass over what is locked, so where nothing comes after them
    nobody waits for one who waits.
    """
    return not write.first_lock, write.first_lock


def _tell(done: Sequence[_Done]) -> None:
    """Answer who asked, all at once: to wake an event loop costs more than what it is told."""
    for loop in {each.write.answer.get_loop() for each in done}:
        # The loop may be gone when a process ends.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_answer, [each for each in done if each.write.answer.get_loop() is loop])


def _answer(done: Sequence[_Done]) -> None:
    for each in done:
        answer = each.write.answer
        if answer.done():
            continue
        if each.error is not None:
            answer.set_exception(each.error)
        else:
            answer.set_result(each.result)
