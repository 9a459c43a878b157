"""Statements that SQLite's driver is given as they are.

For each execution of a statement SQLAlchemy works much out anew that does not change. That takes longer than SQLite
takes to carry it out, and longest where a network has just had the processor's caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, IteratorResult, Result
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.sql.compiler import SQLCompiler

from safelight.store.sqlite import carry_out, carry_out_each

Statement = sa.Select[Any] | sa.Insert | sa.Update
Parameters = Mapping[str, object]
Convert = Callable[[Any], Any]


class Prepared:
    """A statement that is carried out often. None of its parameters is expanding. Other databases than SQLite get it as
    any other statement. What is worked out is kept as long as the statement, and is the same for all stores."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def execute(self, connection: Connection, parameters: Parameters) -> Result[Any]:
        """As `connection.execute` does; what comes back has no `rowcount`. Raises DBAPIError."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, parameters)
        plan = self._plan_for(connection, parameters)
        return plan.result(carry_out(connection, plan.text, plan.values(parameters)))

    def execute_each(self, connection: Connection, several: Sequence[Parameters]) -> None:
        """For each of `several`, which name the same; what it returns is lost. Raises as `execute`."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, several)
            return
        plan = self._plan_for(connection, several[0])
        carry_out_each(connection, plan.text, map(plan.values, several))

    def _plan_for(self, connection: Connection, parameters: Parameters) -> _Plan:
        names = tuple(parameters)
        if (plan := self._plans.get(names)) is None:
            plan = self._plans[names] = _Plan(self._statement, connection.dialect, names)
        return plan


class _Plan:
    """A statement for parameters of certain names: an update sets those columns that they name."""

    def __init__(self, statement: Statement, dialect: Dialect, names: Iterable[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        assert isinstance(compiled, SQLCompiler)
        self.text = compiled.string
        given = frozenset(names)
        self._places = [_place(compiled, name, given, dialect) for name in compiled.positiontup or ()]
        columns = list(statement.exported_columns)
        self._columns = SimpleResultMetaData([column.name for column in columns])
        converts = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._converts = [(place, convert) for place, convert in enumerate(converts) if convert is not None]

    def values(self, parameters: Parameters) -> Sequence[object]:
        """What stands at the question marks of `text`."""
        return [
            fixed if name is None else parameters[name] if convert is None else convert(parameters[name])
            for name, convert, fixed in self._places
        ]

    def result(self, rows: Iterable[Sequence[object]]) -> Result[Any]:
        """Rows of the driver, as SQLAlchemy gives them."""
        return IteratorResult(self._columns, map(self._converted, rows))

    def _converted(self, row: Sequence[object]) -> Sequence[object]:
        values = list(row)
        for place, convert in self._converts:
            values[place] = convert(values[place])
        return values


def _place(
    compiled: SQLCompiler, name: str, given: frozenset[str], dialect: Dialect
) -> tuple[str | None, Convert | None, object]:
    """The parameter that stands at a question mark, and how it becomes the driver's; or what always stands there."""
    bind = compiled.binds[name]
    convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
    if name in given:
        return name, convert, None
    assert not bind.required, f"the parameter {name} has no value"
    value = compiled.params[name]
    return None, None, value if convert is None else convert(value)
