"""Which SQLite: the one that comes with its driver where that is installed, else Python's own, which is as old as the
system. And what is asked of it past SQLAlchemy."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

log = logging.getLogger(__name__)

HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

__all__ = ["HAS_SOUND_WAL", "carry_out", "carry_out_each", "sqlite3", "standing_in_line", "sync_log"]


@contextmanager
def standing_in_line(file: Path, kind: int) -> Iterator[None]:
    """Hold a lock of this kind (fcntl.LOCK_EX, fcntl.LOCK_SH) on `file`, once it is this process's turn."""
    with file.open("rb") as opened:
        fcntl.flock(opened, kind)
        yield


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
    raises: it was answered, and must not be done again.

    `is_synced` of its info tells how it commits; what it has synced before is noted there too.
    """
    driver = _driver_of(connection)
    if connection.info.get("is_synced", True) or connection.info.get("num_synced") == driver.total_changes:
        return
    connection.info["num_synced"] = driver.total_changes
    try:
        _sync_file(f"{connection.engine.url.database}-wal")
    except FileNotFoundError:
        return
    except OSError:
        # What failed may count as written now, and later commits would lie behind a hole: all of it goes into the
        # database itself instead, and the log begins anew.
        log.exception("the log of the database cannot be synced")
        try:
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        except sqlite3.Error:
            log.exception("the database cannot be synced")


def _sync_file(path: str) -> None:
    # SQLite holds no lock on its log, which closing it again would lose.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
