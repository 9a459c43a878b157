"""Rows that are written just before their transaction commits, all of one table in one statement.

For what is only appended and what no transaction reads that wrote it: many writes are committed together, and each statement
more is a way to the database and back.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

_ROWS = "late rows"


def allow_late_rows(engine: Engine) -> None:
    """From now on `add_late` works within the transactions of `engine`."""
    event.listen(engine, "begin", _start)
    event.listen(engine, "commit", _write)


def add_late(connection: Connection, insert: sa.Insert, row: Mapping[str, object]) -> None:
    """Carry out `insert` with `row` at the end of this transaction; not at all if that is undone."""
    connection.info[_ROWS].setdefault(insert, []).append(row)


def _start(connection: Connection) -> None:
    # What a transaction left that was undone is forgotten here: a connection that was lost has no place for it any more.
    connection.info[_ROWS] = {}


def _write(connection: Connection) -> None:
    for insert, rows in connection.info[_ROWS].items():
        connection.execute(insert, rows)
