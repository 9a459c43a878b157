"""The database engine and everything in which one database differs from another: clock, locking, pragmas, error numbers.

Transactions are plain functions of a Connection. `Database` runs them on threads and awaits them, so a transaction is
one hop, and a cancelled caller never leaves one half done.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from safelight.errors import ConfigError, SafelightError, StorageFull, TryLater
from safelight.store.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS = 10.0
"""How long a transaction waits for other processes before it gives up with TryLater."""

NUM_READERS = 3
HAS_SOUND_WAL = sqlite3.sqlite_version_info >= (3, 51, 3)
"""SQLite before this can corrupt a WAL file that several processes write."""

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"}
)

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
    return "round(extract(epoch from clock_timestamp()), 3)::double precision"


class Database:
    """Runs transactions off the event loop: writes in arrival order and committed together, reads beside them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = Path(f"{engine.url.database}-turns")
        self._turns.touch()
        self._writer = Writer(engine.execution_options(is_writing=True), partial(self._turn, fcntl.LOCK_EX))
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="store-read")

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one transaction that only reads. Raises TryLater."""
        call = partial(self._read, lambda connection: work(connection, *args, **kwargs))
        try:
            async with asyncio.timeout(2 * BUSY_SECONDS):
                with translated():
                    return await asyncio.get_running_loop().run_in_executor(self._readers, call)
        except TimeoutError as error:
            raise _busy() from error

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` so that it is durable once this returns; an error undoes all of it. Raises TryLater, StorageFull.

        Cancelled, it happens whole or not at all. `work` may run twice, the first time undone.
        """
        future = self._writer.submit(lambda connection: work(connection, *args, **kwargs))
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait([answer], timeout=BUSY_SECONDS)
            # What has begun cannot be taken back, so its answer is waited for.
            if not answer.done() and future.cancel():
                raise _busy()
            with translated():
                return await answer
        finally:
            answer.cancel()

    async def close(self) -> None:
        """Wait for the transactions under way, then let go of the database."""
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.close(BUSY_SECONDS)
        self._readers.shutdown()
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._turn(fcntl.LOCK_SH), self._engine.begin() as connection:
            return work(connection)

    @contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        """Stand in line with other processes. SQLite only asks again and again, and a busy neighbour may starve it.

        Only good manners: that two never write at once, SQLite's own locks see to.
        """
        if HAS_SOUND_WAL and kind == fcntl.LOCK_SH:
            yield
            return
        with self._turns.open("rb") as file:
            fcntl.flock(file, kind)
            yield


def open_engine(data: Path, database_url: str | None) -> Engine:
    """An engine for `database_url`, or for the SQLite file in `data`. Raises ConfigError."""
    try:
        url = make_url(database_url or f"sqlite:///{data / 'safelight.db'}")
    except ArgumentError as error:
        raise ConfigError("store.database_url is not a database URL, such as sqlite:////srv/safelight.db") from error
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigError("store.database_url: this version keeps its runs in an SQLite file only; leave it unset")
    _refuse_network_file_system(Path(url.database).parent)
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        # An isolation level of None keeps the driver from opening transactions by itself.
        connect_args={"isolation_level": None, "timeout": BUSY_SECONDS},
        pool_size=NUM_READERS + 1,
        # Statements with their values would carry prompts into logs.
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, record: object) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA journal_mode={'WAL' if HAS_SOUND_WAL else 'TRUNCATE'}")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-8000")


def _begin_sqlite(connection: Connection) -> None:
    # A write that starts as a read can fail half-way with "locked" and no wait helps; so writes lock at once.
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


@contextmanager
def translated() -> Iterator[None]:
    """Turns the database's "busy" and "full" into TryLater and StorageFull."""
    try:
        yield
    except DBAPIError as error:
        known = _explain(error.orig)
        if known is None:
            raise
        raise known from error


def _explain(error: BaseException | None) -> SafelightError | None:
    """What a database error means to a caller who can do something about it; None for all others."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return _busy()
    if primary == sqlite3.SQLITE_FULL:
        return StorageFull("the disk of the data folder is full; free some space", retry_after_seconds=30.0)
    return None


def _busy() -> TryLater:
    return TryLater("the database is busy; send the same again in a moment", retry_after_seconds=BUSY_SECONDS / 2)


def _refuse_network_file_system(folder: Path) -> None:
    # File locks of these are not reliable enough for a database that several processes write.
    kind = _file_system(folder.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigError(f"{folder} is on a network file system ({kind}); put the data folder on a local disk")


def _file_system(folder: Path) -> str | None:
    """The type of the file system that holds `folder`, where /proc tells."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [(Path(fields[1].replace("\\040", " ")), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    holding = [(len(point.parts), kind) for point, kind in mounts if folder.is_relative_to(point)]
    # The last of several mounts on one point is the one that is seen.
    return max(reversed(holding), key=lambda mount: mount[0])[1] if holding else None
