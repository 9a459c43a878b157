"""Cursors of PostgreSQL's driver that describe the columns of a result only to whoever looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Column, Cursor


class LeanCursor(Cursor[Any]):
    """SQLAlchemy looks into the description of a statement that is new to it, and else only whether there is one."""

    @property
    def description(self) -> Any:
        return _Columns(self) if self.pgresult is not None and self.pgresult.nfields else None

    def describe(self) -> Sequence[Column]:
        return super().description or ()


class _Columns(Sequence[Column]):
    def __init__(self, cursor: LeanCursor) -> None:
        self._cursor = cursor

    def __len__(self) -> int:
        return len(self._cursor.describe())

    def __getitem__(self, index: Any) -> Any:
        return self._cursor.describe()[index]
