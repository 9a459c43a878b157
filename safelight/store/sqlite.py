"""Which SQLite: the one that comes with its driver where that is installed, else Python's own, which is
as old as the system."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import Connection

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

log = logging.getLogger(__name__)

HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

__all__ = ["HAS_SOUND_WAL", "sqlite3", "standing_in_line", "sync_log"]


@contextmanager
def standing_in_line(file: Path, kind: int) -> Iterator[None]:
    """Hold a lock of this kind (fcntl.LOCK_EX, fcntl.LOCK_SH) on `file`, once it is this process's turn."""
    with file.open("rb") as opened:
        fcntl.flock(opened, kind)
        yield


def sync_log(connection: Connection) -> None:
    """Have what `connection` committed unsynced survive power loss, where it is still in the write-ahead log. Never
    raises: it was answered, and must not be done again.

    `is_synced` of its info tells how it commits; what it has synced before is noted there too.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
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
