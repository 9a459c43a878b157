"""The database engine, and in what one database differs from another: clock, locking, pragmas, error numbers.

Transactions are plain functions of a Connection. `Database` runs them on threads and awaits them, so a transaction is
one hop, and a cancelled caller never leaves one half done.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from safelight.errors import ConfigError, SafelightError, StorageFull, TryLater
from safelight.store.file_systems import refuse_network_file_system
from safelight.store.hint_channel import HintChannel
from safelight.store.hint_sockets import HintSockets
from safelight.store.notifications import Wire
from safelight.store.reader import NUM_READERS, Reader
from safelight.store.sqlite import HAS_SOUND_WAL, carry_out, mend_log, sqlite3, standing_in_line, sync_log
from safelight.store.writer import CommitInDoubt, RowLock, Write, Writer, WriterClosed

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS = 10.0
"""How long a transaction waits for other processes before it gives up with TryLater."""

OLDEST_POSTGRESQL = 130000
POSTGRESQL_DEFAULTS = {
    "application_name": "safelight",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""What connections are opened with unless the URL says otherwise: a server that falls silent is noticed in seconds."""

POSTGRESQL_SESSION = """
SELECT current_setting('server_encoding'),
    set_config('lock_timeout', %s, false),
    set_config('statement_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false)
"""
"""A commit that is answered must survive power loss, so `off` is not taken from the server's settings."""

STATEMENT_SECONDS = 60.0
MIGRATION_SECONDS = 600.0
MIGRATION_LOCK = 0x5AFE11
"""Of all processes that open a PostgreSQL database, on any machine, one at a time migrates it."""

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A row number the database hands out: SQLite does so only for INTEGER PRIMARY KEY."""


class now(FunctionElement[float]):
    """Seconds since the epoch on the database's clock, to the millisecond."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_on_sqlite(element: now, compiler: SQLCompiler, **kwargs: object) -> str:
    return "round((julianday('now') - 2440587.5) * 86400.0, 3)"


@compiles(now, "postgresql")
def _now_on_postgresql(element: now, compiler: SQLCompiler, **kwargs: object) -> str:
    # As SQLite's, it stands still within a statement.
    return "round(extract(epoch from statement_timestamp())::numeric, 3)::double precision"


class whole(FunctionElement[int]):
    """The integer part of a number."""

    type = sa.Integer()
    inherit_cache = True


@compiles(whole, "sqlite")
def _whole_on_sqlite(element: whole, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kwargs)} AS INTEGER)"


@compiles(whole, "postgresql")
def _whole_on_postgresql(element: whole, compiler: SQLCompiler, **kwargs: Any) -> str:
    # A cast alone would round.
    return f"CAST(trunc({compiler.process(element.clauses, **kwargs)}) AS INTEGER)"


class prompt_in(FunctionElement[str]):
    """The prompt in a run's params."""

    type = sa.Text()
    inherit_cache = True


@compiles(prompt_in, "sqlite")
def _prompt_on_sqlite(element: prompt_in, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **kwargs)}, '$.prompt')"


@compiles(prompt_in, "postgresql")
def _prompt_on_postgresql(element: prompt_in, compiler: SQLCompiler, **kwargs: Any) -> str:
    # PostgreSQL reads no NUL and no lone surrogate out of JSON, and one such prompt would break the whole search: of
    # these the JSON itself is looked through.
    params = compiler.process(element.clauses, **kwargs)
    unreadable = r"\\u0000|\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]"
    return f"CASE WHEN {params} ~ '{unreadable}' THEN {params} ELSE {params}::json ->> 'prompt' END"


class Database:
    """Runs transactions off the event loop: writes in arrival order and committed together, reads beside them."""

    def __init__(self, engine: Engine, *, hint: Callable[[Sequence[str]], None]) -> None:
        """`hint` is called on a thread, with the topics of what was committed."""
        self._engine = engine
        self._turns = _turns_of(engine)
        self._writer = Writer(
            engine.execution_options(is_writing=True),
            partial(self._turn, fcntl.LOCK_EX),
            sync=sync_log if _is_sqlite(engine) else lambda connection: None,
            hint=hint,
            is_passing=_is_passing,
            has_row_locks=not _is_sqlite(engine),
        )
        # A transaction that reads sees one moment only, as on SQLite.
        reading = engine if _is_sqlite(engine) else engine.execution_options(isolation_level="REPEATABLE READ")
        self._reader = Reader(reading, partial(self._turn, fcntl.LOCK_SH))
        self._can_glance = _is_sqlite(engine) and HAS_SOUND_WAL

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one transaction that only reads. Raises TryLater."""
        try:
            async with asyncio.timeout(2 * BUSY_SECONDS):
                with translated():
                    return await self._reader.read(lambda connection: work(connection, *args, **kwargs))
        except TimeoutError as error:
            raise _busy() from error

    async def glance(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` of a row or two that were just written, and so are in memory: the way to a thread takes longer than
        they do. Raises TryLater."""
        if self._can_glance:
            with suppress(DBAPIError):
                return self._reader.glance(lambda connection: work(connection, *args, **kwargs))
        return await self.read(work, *args, **kwargs)

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` so that it is durable once this returns; an error undoes all of it. Raises TryLater, StorageFull.

        Cancelled, it happens whole or not at all. `work` may run again, undone each time but the last.
        """
        return await self.write_locking((), work, *args, **kwargs)

    async def write_locking(
        self, first: RowLock, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`write` for what locks `first` before any other row that processes compete for."""
        return await self._await(self._writer.submit(lambda connection: work(connection, *args, **kwargs), first))

    async def write_unsynced(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`write` for what nobody relies on but processes of the store. Power that goes takes all of SQLite's with it,
        so it syncs just after the answer; PostgreSQL's may be elsewhere. Raises TryLater, StorageFull."""
        write = self._writer.submit(lambda connection: work(connection, *args, **kwargs), may_be_unsynced=True)
        return await self._await(write)

    async def _await(self, write: Write[T]) -> T:
        patience = asyncio.get_running_loop().call_later(BUSY_SECONDS, self._give_up, write)
        try:
            with translated():
                return await write.answer
        finally:
            patience.cancel()
            if write.answer.cancelled():
                self._writer.take_back(write)

    def _give_up(self, write: Write[Any]) -> None:
        # What has begun cannot be taken back, so its answer is waited for.
        if self._writer.take_back(write) and not write.answer.done():
            write.answer.set_exception(_busy())

    async def close_idle(self) -> None:
        """Close the connections that nobody uses, with the pages that they have cached. Others are opened as needed."""
        self._reader.stop_glancing()
        await asyncio.to_thread(self._let_go)

    async def close(self) -> None:
        """Wait for the transactions under way, then let go of the database."""
        self._reader.stop_glancing()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.close(BUSY_SECONDS)
        self._reader.close()
        self._engine.dispose()

    def _let_go(self) -> None:
        self._reader.close_idle()
        self._engine.dispose()

    def _turn(self, kind: int) -> AbstractContextManager[None]:
        """Stand in line with other processes. SQLite only asks again and again, and a busy neighbour may starve it."""
        # Only good manners: that two never write at once, SQLite's own locks see to.
        if self._turns is None or (HAS_SOUND_WAL and kind == fcntl.LOCK_SH):
            return nullcontext()
        return standing_in_line(self._turns, kind)


def _turns_of(engine: Engine) -> Path | None:
    """The file that processes stand in line at; None where the database sees to that."""
    if not _is_sqlite(engine):
        return None
    turns = Path(f"{engine.url.database}-turns")
    turns.touch()
    return turns


def _is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


def open_engine(data: Path, database_url: str | None) -> Engine:
    """An engine for `database_url`, or for the SQLite file in `data`. Raises ConfigError."""
    try:
        url = make_url(database_url or f"sqlite:///{data / 'safelight.db'}")
    except ArgumentError as error:
        message = "store.database_url is not a database URL, such as postgresql://user:password@host/safelight"
        raise ConfigError(message) from error
    if url.get_backend_name() == "postgresql":
        return _open_postgresql(url)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        message = "store.database_url: runs are kept in PostgreSQL or in an SQLite file; leave it unset for a file"
        raise ConfigError(message)
    return _open_sqlite(url)


def open_wire(engine: Engine, data: Path) -> Wire:
    """What carries hints between the processes that have this database open. It may block for seconds."""
    return HintSockets(data) if _is_sqlite(engine) else HintChannel(engine)


def lock_schema(connection: Connection) -> None:
    """Wait until no other process migrates; holds others off until the transaction ends."""
    if connection.dialect.name == "postgresql":
        for setting in ("lock_timeout", "statement_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {setting} = {_milliseconds(MIGRATION_SECONDS)}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


def _open_sqlite(url: URL) -> Engine:
    refuse_network_file_system(Path(url.database or "").parent)
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        module=sqlite3,
        # An isolation level of None keeps the driver from opening transactions by itself.
        connect_args={"isolation_level": None, "timeout": BUSY_SECONDS},
        pool_size=NUM_READERS + 1,
        # The one that was used last has its statements and pages at hand; by turns, each would find another's writes.
        pool_use_lifo=True,
        # Statements with their values would carry prompts into logs.
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _open_postgresql(url: URL) -> Engine:
    defaults = {name: value for name, value in POSTGRESQL_DEFAULTS.items() if name not in url.query}
    try:
        from safelight.store.lean_cursor import LeanCursor  # noqa: PLC0415 - only those who have PostgreSQL have its driver

        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={**defaults, "cursor_factory": LeanCursor},
            isolation_level="READ COMMITTED",
            # The readers, the writer, and the one that hears hints.
            pool_size=NUM_READERS + 2,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        raise ConfigError("PostgreSQL needs one more package: pip install 'safelight[postgres]'") from error
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: Any, record: object) -> None:
    if connection.info.server_version < OLDEST_POSTGRESQL:
        raise ConfigError(f"this PostgreSQL is too old; take {OLDEST_POSTGRESQL // 10000} or newer")
    connection.autocommit = True
    limits = [str(_milliseconds(seconds)) for seconds in (BUSY_SECONDS, STATEMENT_SECONDS, STATEMENT_SECONDS)]
    encoding, *_ = connection.execute(POSTGRESQL_SESSION, limits).fetchone()
    connection.autocommit = False
    if encoding != "UTF8":
        raise ConfigError(f"the database keeps text as {encoding}; make one with ENCODING 'UTF8' TEMPLATE template0")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _prepare_sqlite(connection: DBAPIConnection, record: object) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA journal_mode={'WAL' if HAS_SOUND_WAL else 'TRUNCATE'}")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    if not connection.get_execution_options().get("is_writing", False):
        carry_out(connection, "BEGIN")
        return
    # Another journal than a write-ahead log may be damaged for good where it is not synced in time.
    is_synced = not (connection.info.get("is_unsynced", False) and HAS_SOUND_WAL)
    if connection.info.get("is_synced", True) != is_synced:
        carry_out(connection, f"PRAGMA synchronous={'FULL' if is_synced else 'NORMAL'}")
        connection.info["is_synced"] = is_synced
    mend_log(connection)
    # A write that starts as a read can fail half-way with "locked" and no wait helps; so writes lock at once.
    carry_out(connection, "BEGIN IMMEDIATE")


@contextmanager
def translated() -> Iterator[None]:
    """Turns the database's "busy", "full" and "gone" into TryLater and StorageFull."""
    try:
        yield
    except (CommitInDoubt, WriterClosed) as error:
        raise _unreachable() from error
    except DBAPIError as error:
        if (known := _explain(error)) is None:
            raise
        raise known from error


def _explain(error: DBAPIError) -> SafelightError | None:
    """What a database error means to a caller who can do something about it; None for all others."""
    number = getattr(error.orig, "sqlite_errorcode", None)
    return _explain_sqlstate(error) if number is None else _explain_sqlite(number & 0xFF)


def _explain_sqlite(primary: int) -> SafelightError | None:
    if primary == sqlite3.SQLITE_FULL:
        return StorageFull("the disk of the data folder is full; free some space", retry_after_seconds=30.0)
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return StorageFull("the disk of the data folder fails, or its quota is used up", retry_after_seconds=30.0)
    return _busy() if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else None


def _explain_sqlstate(error: DBAPIError) -> SafelightError | None:
    sqlstate = _sqlstate(error)
    if sqlstate == "53100":
        return StorageFull("the disk of the database is full; free some space", retry_after_seconds=30.0)
    # Deadlock, serialization failure, lock not available, statement timeout.
    if sqlstate in ("40P01", "40001", "55P03", "57014"):
        return _busy()
    # Connection lost, shut down or starting up, out of connections or memory, read-only after a failover; without
    # a state when nobody answers at all.
    is_gone = error.connection_invalidated or (isinstance(error, OperationalError) and not sqlstate)
    return _unreachable() if is_gone or sqlstate.startswith(("08", "57P", "53", "25006", "25P03")) else None


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _is_passing(error: DBAPIError) -> bool:
    """Whether the same transaction, which was undone, may go through when it is done again at once.

    Beside deadlocks: a unique key that another process was quicker to write, and a connection of before a restart.
    """
    return isinstance(error, IntegrityError) or error.connection_invalidated or _sqlstate(error) in ("40P01", "40001")


def _unreachable() -> TryLater:
    message = "the database cannot be reached; send the same again in a moment"
    return TryLater(message, retry_after_seconds=BUSY_SECONDS / 2)


def _busy() -> TryLater:
    return TryLater("the database is busy; send the same again in a moment", retry_after_seconds=BUSY_SECONDS / 2)
