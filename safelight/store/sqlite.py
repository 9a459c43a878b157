"""Which SQLite: the one that comes with its driver where that is installed, else Python's own, which is
as old as the system."""

from __future__ import annotations

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

__all__ = ["HAS_SOUND_WAL", "sqlite3"]
