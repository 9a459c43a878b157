"""Which SQLite: the one that comes with its driver where that is installed, else Python's own, which is as old as the
system. And what is asked of it past SQLAlchemy."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from safelight.errors import TryLater

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

log = logging.getLogger(__name__)

HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

__all__ = ["HAS_SOUND_WAL", "carry_out", "carry_out_each", "mend_log", "sqlite3", "standing_in_line", "sync_log"]


@contextmanager
def standing_in_line(file: Path, kind: int) -> Iterator[None]:
    """Hold a lock of this kind (fcntl.LOCK_EX, fcntl.LOCK_SH) on `file`, once it is this process's turn."""
    # Not as a file object, which costs several times as much.
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def carry_out(connection: Connection, text: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Carry out a statement past SQLAlchemy, in its transaction. Raises SQLAlchemy's DBAPIError."""
    try:
        rows: list[tuple[Any, ...]] = _driver_of(connection).execute(text, values).fetchall()
        return rows
    except sqlite3.Error as error:
        raise _explain(error, text) from error


def carry_out_each(connection: Connection, text: str, several: Iterable[Sequence[object]]) -> None:
    """`carry_out` for each of several values, without what it returns."""
    try:
        _driver_of(connection).executemany(text, several)
    except sqlite3.Error as error:
        raise _explain(error, text) from error


def _driver_of(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _explain(error: Exception, text: str) -> DBAPIError:
    # Values carry prompts, and an error is written into logs.
    told = DBAPIError.instance(text, None, error, sqlite3.Error, hide_parameters=True)
    assert isinstance(told, DBAPIError)
    return told


def sync_log(connection: Connection) -> None:
    """Have what `connection` committed unsynced survive power loss, where it is still in the write-ahead log. Never
    raises: it was answered, and must not be done again. Where it fails, `mend_log` comes before the next write.

    `is_synced` of its info tells how it commits; what it has synced before is noted there too.
    """
    info, num_changes = connection.info, _driver_of(connection).total_changes
    if info.get("is_synced", True) or info.get("num_synced") == num_changes:
        return
    info["num_synced"] = num_changes
    try:
        # Where the database is a link, SQLite's log lies beside what it leads to.
        _sync_file(f"{os.path.realpath(connection.engine.url.database or '')}-wal")
    except OSError:
        log.exception("the log of the database cannot be synced")
        info["has_hole"] = True
        with suppress(DBAPIError, TryLater):
            mend_log(connection)


def mend_log(connection: Connection) -> None:
    """After a sync that failed: what failed may count as written now, and later commits would lie behind a hole. So all
    of the log goes into the database itself, and begins anew. Raises DBAPIError, TryLater."""
    if connection.info.get("has_hole", False):
        [(is_busy, *_)] = carry_out(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
        if is_busy:
            raise TryLater("the disk did not take what was written last; it is tried again with each write")
        del connection.info["has_hole"]


def _sync_file(path: str) -> None:
    # SQLite holds no lock on its log, which closing it again would lose.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
