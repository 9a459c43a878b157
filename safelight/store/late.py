"""Rows that are written just before their transaction commits, all of one table in one statement.

For what is only appended and what no transaction reads that wrote it: many writes are committed together, and each
statement more is a way to the database and back.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_ROWS = "late rows"


def begin_late(connection: Connection) -> None:
    """From now on `add_late` works within this transaction, which has just begun."""
    # What a transaction left that was undone is forgotten here: a connection that was lost has no place for it any
    # more.
    connection.info[_ROWS] = {}


def add_late(connection: Connection, insert: sa.Insert, row: Mapping[str, object]) -> None:
    """Carry out `insert` with `row` at the end of this transaction; not at all if that is undone."""
    connection.info[_ROWS].setdefault(insert, []).append(row)


def write_late(connection: Connection) -> None:
    """Carry out what was added, as the last thing in this transaction."""
    for insert, rows in connection.info[_ROWS].items():
        connection.execute(insert, rows)
