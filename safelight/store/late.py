"""What a transaction leaves for its end: rows that are written just before it commits, and hints that are sent once it
has.

Rows of one table take one statement, for what is only appended and what no transaction reads that wrote it: many writes
are committed together, and each statement more is a way to the database and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.engine import Connection

from safelight.store.prepared import Prepared

_ROWS = "late rows"
_HINTS = "hints"


def begin_late(connection: Connection) -> None:
    """From now on `add_late` and `add_hint` work within this transaction, which has just begun."""
    # What a transaction left that was undone is forgotten here: a connection that was lost has no place for it any
    # more.
    connection.info[_ROWS] = {}
    connection.info[_HINTS] = {}


def add_late(connection: Connection, insert: Prepared, row: Mapping[str, object]) -> None:
    """Carry out `insert` with `row` at the end of this transaction; not at all if that is undone."""
    connection.info[_ROWS].setdefault(insert, []).append(row)


def write_late(connection: Connection) -> None:
    """Carry out what was added, as the last thing in this transaction."""
    for insert, rows in connection.info[_ROWS].items():
        insert.execute_each(connection, rows)


def add_hint(connection: Connection, *topics: str) -> None:
    """Wake whoever listens to `topics`, in all processes, once this transaction is committed; not if it is undone."""
    connection.info[_HINTS].update(dict.fromkeys(topics))


def hints_of(connection: Connection) -> Sequence[str]:
    """The topics that were added in the last transaction."""
    return tuple(connection.info[_HINTS])
