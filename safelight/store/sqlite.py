"""Which SQLite: the one that comes with its driver where that is installed, else Python's own, which is
as old as the system."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

__all__ = ["HAS_SOUND_WAL", "sqlite3", "standing_in_line", "sync_log"]


@contextmanager
def standing_in_line(file: Path, kind: int) -> Iterator[None]:
    """Hold a lock of this kind (fcntl.LOCK_EX, fcntl.LOCK_SH) on `file`, once it is this process's turn."""
    with file.open("rb") as opened:
        fcntl.flock(opened, kind)
        yield


def sync_log(database: str) -> None:
    """Have what was committed to the file `database` survive power loss, where it is still in its write-ahead log."""
    # SQLite holds no lock on this file, which closing it again would lose.
    with suppress(OSError):
        log = os.open(f"{database}-wal", os.O_RDONLY)
        try:
            os.fsync(log)
        finally:
            os.close(log)
