"""A database that tells of its transactions, where they belong to a trace. What the statements hold is never told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.engine import Connection, Engine

from safelight.store.database import Database
from safelight.store.writer import RowLock
from safelight.tracing import Span, Tracing

P = ParamSpec("P")
T = TypeVar("T")


class TracedDatabase(Database):
    """Like Database, with a span for each transaction that is asked for within one."""

    def __init__(self, engine: Engine, tracing: Tracing, *, hint: Callable[[Sequence[str]], None]) -> None:
        super().__init__(engine, hint=hint)
        self._system = "postgresql" if engine.dialect.name == "postgresql" else "sqlite"
        self._tracing = tracing

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._span(work):
            return await super().read(work, *args, **kwargs)

    async def glance(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._span(work):
            return await super().glance(work, *args, **kwargs)

    async def write_locking(
        self, first: RowLock, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # `write` comes here too.
        with self._span(work):
            return await super().write_locking(first, work, *args, **kwargs)

    async def write_unsynced(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._span(work):
            return await super().write_unsynced(work, *args, **kwargs)

    def _span(self, work: Callable[..., object]) -> AbstractContextManager[Span]:
        module = work.__module__.removeprefix("safelight.store.")
        name = f"store {module}.{getattr(work, '__name__', 'transaction').lstrip('_')}"
        return self._tracing.inner_span(name, kind="client", attributes={"db.system.name": self._system})
