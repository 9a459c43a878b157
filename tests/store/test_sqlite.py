"""What SQLite is asked to guarantee, and what its errors become."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import ConfigError, Overloaded, StorageFull, TryLater
from safelight.keys import Allowance, Scope
from safelight.runs import RunParams, RunStatus
from safelight.store import Store, prepared
from safelight.store.database import open_engine
from safelight.store.search import RunSearch
from safelight.store.sqlite import HAS_SOUND_WAL, carry_out, sqlite3

from .making import HOOK, claim_one, end_one, new_run, on_sqlite, submit

pytestmark = [on_sqlite, pytest.mark.usefixtures("kind")]


def pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


async def test_a_commit_survives_power_loss(store: Store) -> None:
    read, write = store._database.read, store._database.write
    for run in (read, write, read, write):
        await store.release_memory()
        assert await run(pragma, "synchronous") == 2
        assert await run(pragma, "journal_mode") == ("wal" if HAS_SOUND_WAL else "truncate")
        assert await run(pragma, "foreign_keys") == 1


class SyncedLog:
    """Counts the syncs of the write-ahead log by anybody but SQLite itself, holds them up, or has them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_syncs = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.is_broken = False
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("-wal"):
            assert self.go_on.wait(10)
            self.num_syncs += 1
            if self.is_broken:
                raise OSError(errno.EIO, "the disk is broken")
        self._sync(descriptor)


@pytest.fixture
def synced_log(monkeypatch: pytest.MonkeyPatch) -> SyncedLog:
    if not HAS_SOUND_WAL:
        pytest.skip("this SQLite has no log that is used")
    return SyncedLog(monkeypatch)


async def test_a_claim_is_answered_before_it_is_synced_and_synced_before_anything_else_is_written(
    store: Store, synced_log: SyncedLog
) -> None:
    run = await submit(store)
    synced_log.go_on.clear()
    assert (await claim_one(store)).run.id == run.id
    assert synced_log.num_syncs == 0
    another = asyncio.create_task(submit(store))
    await asyncio.sleep(0.05)
    assert not another.done()
    synced_log.go_on.set()
    await another
    assert synced_log.num_syncs == 1


async def test_a_claim_of_nothing_syncs_nothing(store: Store, synced_log: SyncedLog) -> None:
    await submit(store)
    assert await claim_one(store)
    for _ in range(3):
        assert not await store.runs.claim("w", limit=1, lease_seconds=60)
    await submit(store)
    assert synced_log.num_syncs == 1


async def test_where_the_log_cannot_be_synced_its_content_goes_into_the_database_itself(
    store: Store, data: Path, synced_log: SyncedLog, caplog: pytest.LogCaptureFixture
) -> None:
    run = await submit(store)
    synced_log.is_broken = True
    assert await claim_one(store)
    await submit(store)
    assert "cannot be synced" in caplog.text
    # Without the log, as if it had been lost.
    (data / "alone").mkdir()
    shutil.copy(data / "safelight.db", data / "alone")
    with sqlite3.connect(data / "alone" / "safelight.db") as alone:
        assert alone.execute("SELECT status FROM runs WHERE id = ?", [run.id]).fetchall() == [("running",)]


@pytest.mark.usefixtures("impatient")
async def test_behind_what_could_not_be_synced_nothing_is_written_until_it_is_in_the_database(
    data: Path, synced_log: SyncedLog
) -> None:
    async with await Store.open(data) as store:
        await submit(store)
        with contextlib.closing(sqlite3.connect(data / "safelight.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM runs").fetchall()
            synced_log.is_broken = True
            assert await claim_one(store)
            for _ in range(2):
                with pytest.raises(TryLater):
                    await submit(store)
            reader.execute("COMMIT")
        await submit(store)
        assert (await store.runs.backlog()).num_queued == 1


async def test_the_log_of_a_database_that_is_a_link_is_synced_where_it_is(data: Path, synced_log: SyncedLog) -> None:
    (data / "safelight.db").rename(data / "elsewhere.db").with_name("safelight.db").symlink_to(data / "elsewhere.db")
    async with await Store.open(data) as store:
        await submit(store)
        assert await claim_one(store)
        await submit(store)
    assert synced_log.num_syncs == 1


async def test_claims_that_cannot_be_synced_are_not_made_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not HAS_SOUND_WAL:
        pytest.skip("this SQLite has no log that is used")
    usual = os.open

    def open_few(path: str, *arguments: int, **more: int) -> int:
        if str(path).endswith("-wal"):
            raise OSError(errno.EMFILE, "too many open files")
        return usual(path, *arguments, **more)

    monkeypatch.setattr(os, "open", open_few)
    for _ in range(4):
        await submit(store)
    with store._database._turn(fcntl.LOCK_EX):
        asked = [asyncio.ensure_future(claim_one(store)) for _ in range(2)]
        await asyncio.sleep(0.1)
    claims = await asyncio.gather(*asked)
    await submit(store)
    assert "cannot be synced" in caplog.text
    assert len({claim.run.id for claim in claims}) == 2
    assert (await store.runs.backlog()).num_queued == 4 - 2 + 1


@pytest.mark.parametrize("has_log", [True, False])
async def test_without_a_log_nothing_is_committed_unsynced(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, has_log: bool
) -> None:
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", has_log and HAS_SOUND_WAL)
    async with await Store.open(data) as store:
        normal, full = 1, 2
        assert await store._database.write_unsynced(pragma, "synchronous") == (
            normal if has_log and HAS_SOUND_WAL else full
        )
        assert await store._database.write(pragma, "synchronous") == full


async def test_what_must_be_durable_takes_what_is_committed_with_it_along(store: Store) -> None:
    with store._database._turn(fcntl.LOCK_EX):
        asked = [
            asyncio.ensure_future(run(pragma, "synchronous"))
            for run in (store._database.write_unsynced, store._database.write_unsynced, store._database.write)
        ]
        await asyncio.sleep(0.1)
    assert set(await asyncio.gather(*asked)) == {2}


@pytest.mark.parametrize(("is_sound", "mode"), [(True, "wal"), (False, "truncate")])
async def test_the_journal_suits_the_sqlite_there_is_and_an_earlier_one_is_taken_over(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, is_sound: bool, mode: str
) -> None:
    if not HAS_SOUND_WAL:
        pytest.skip("this SQLite knows one journal only")
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", not is_sound)
    async with await Store.open(data) as store:
        run = await submit(store)
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", is_sound)
    async with await Store.open(data) as store:
        assert await store._database.write(pragma, "journal_mode") == mode
        assert await store.runs.get(run.id) == run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.database.BUSY_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
async def test_a_commit_that_failed_keeps_nobody_from_writing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", False)
    async with await Store.open(data) as store:
        await submit(store)
        with contextlib.closing(sqlite3.connect(data / "safelight.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM runs").fetchall()
            with pytest.raises(TryLater):
                await submit(store)
            reader.execute("COMMIT")
        await submit(store)
        assert (await store.runs.backlog()).num_queued == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("has_log", [True, False])
async def test_a_database_locked_for_too_long_is_to_try_later(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, has_log: bool
) -> None:
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", has_log and HAS_SOUND_WAL)
    async with await Store.open(data) as store:
        other = sqlite3.connect(data / "safelight.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        calls: list[Callable[[], Awaitable[object]]] = [partial(submit, store), partial(submit, store)]
        if not (has_log and HAS_SOUND_WAL):
            calls += [store.runs.list, store.keys.count]
        for call in calls:
            with pytest.raises(TryLater):
                await call()
        answers = await asyncio.gather(*(submit(store) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, TryLater) for answer in answers)
        other.close()
        await submit(store)
        assert (await store.runs.backlog()).num_queued == 1


@pytest.mark.usefixtures("impatient")
async def test_many_writes_find_out_together_that_the_database_is_locked(data: Path) -> None:
    tries: list[object] = []
    async with await Store.open(data) as store:
        sa.event.listen(store._database._writer._engine, "begin", tries.append)
        other = sqlite3.connect(data / "safelight.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with (data / "safelight.db-turns").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            asked = asyncio.gather(*(submit(store) for _ in range(32)), return_exceptions=True)
            await asyncio.sleep(0.1)
        answers = await asked
        other.close()
    assert all(isinstance(answer, TryLater) for answer in answers)
    assert len(tries) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("has_log", [True, False])
async def test_a_write_that_was_told_to_try_later_is_not_done_after_all(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, has_log: bool
) -> None:
    monkeypatch.setattr("safelight.store.database.HAS_SOUND_WAL", has_log and HAS_SOUND_WAL)
    async with await Store.open(data) as store:
        with (data / "safelight.db-turns").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            for _ in range(2):
                with pytest.raises(TryLater):
                    await submit(store)
            if not (has_log and HAS_SOUND_WAL):
                with pytest.raises(TryLater):
                    await store.runs.list()
        await submit(store)
        assert (await store.runs.backlog()).num_queued == 1


async def test_a_full_disk_is_said_and_the_store_goes_on_when_there_is_room(store: Store) -> None:
    def limit(connection: Connection, max_pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={max_pages}").close()

    await submit(store)
    await store._database.write(limit, 1)
    params = RunParams(prompt="x" * 40_000)
    for _ in range(3):
        with pytest.raises(StorageFull):
            await submit(store, params=params)
    answers = await asyncio.gather(*(submit(store, params=params) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(answer, StorageFull) for answer in answers)
    await store._database.write(limit, 1_000_000)
    await submit(store, params=params)
    assert (await store.runs.backlog()).num_queued == 2


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path, **_: mounts)
    with pytest.raises(ConfigError, match="nfs4"):
        open_engine(tmp_path / "data", None)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: mounts + f"tmpfs {tmp_path} tmpfs rw 0 0\n")
    open_engine(tmp_path / "data", None)


async def test_what_is_no_folder_or_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        await Store.open(tmp_path / "file")
    (tmp_path / "safelight.db").write_bytes(b"this is a letter, not a database" * 100)
    with pytest.raises(ConfigError, match="not an SQLite database"):
        await Store.open(tmp_path)


async def test_no_frequent_query_walks_through_all_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    claim = await store.runs.claim("worker", limit=1, lease_seconds=60)
    assert claim == []
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            steps = carry_out(connection, "EXPLAIN QUERY PLAN " + statement, parameters)
            plans.extend(f"{step[3]} <- {statement}" for step in steps)

    def explain_and_carry_out(connection: Connection, statement: str, values: Sequence[object]) -> list[Any]:
        explain(connection, None, statement, values)
        return carry_out(connection, statement, values)

    sa.event.listen(store._database._engine, "before_cursor_execute", explain)
    monkeypatch.setattr(prepared, "carry_out", explain_and_carry_out)
    for wanted in ({}, {"project": "p"}, {"project": "p", "status": RunStatus.FAILED}, {"status": RunStatus.FAILED}):
        await store.runs.list(**wanted, created_before=1e12)  # type: ignore[arg-type]
    await store.runs.list(deployment="d", cursor="MS4wIDE=")
    await end_one(store, webhook_endpoint=HOOK, idempotency_key="k")
    await store.runs.backlog()
    limited = Allowance(requests_per_minute=9, images_per_day=9, max_queued_runs=9)
    key, _ = await store.keys.create("limited", scopes=frozenset({Scope.PREDICT}), allowance=limited)
    await submit(store, key_id=key.id)
    await store.ledger.standings(key.id)
    for search in (RunSearch(), RunSearch(deployment="d"), RunSearch(status=RunStatus.FAILED, text="cat")):
        await store.search.runs(search, limit=5)
    await store.runs.claim("worker", limit=1, lease_seconds=60)
    await store.runs.queue_position((await submit(store)).id)
    await store.runs.requeue_lost(max_attempts=3)
    await store.runs.prune(older_than_seconds=60)
    await store.deliveries.claim_due(limit=5, lease_seconds=60)
    await store.deliveries.seconds_to_next()
    await store.deliveries.list(project="p")
    await store.deliveries.list(run_id="r")
    await store.sweep_images()
    assert len(plans) > 30
    walks = [plan for plan in plans if plan.startswith("SCAN") and "CONSTANT ROW" not in plan and "anon_" not in plan]
    assert [plan for plan in walks if "USING" not in plan.split("<-")[0]] == []
    assert [plan for plan in plans if "TEMP B-TREE" in plan and "FROM runs" in plan] == []


async def test_a_write_that_fails_costs_those_beside_it_few_commits(data: Path) -> None:
    async with await Store.open(data) as store:
        commits = []
        sa.event.listen(store._database._engine, "commit", commits.append)
        held = await asyncio.to_thread(_take_turn, data)
        wanted = [asyncio.create_task(store.runs.create(new_run(), max_queued=40)) for _ in range(41)]
        # All wait for the turn before it is given back.
        await asyncio.sleep(0.05)
        held.close()
        ends = await asyncio.gather(*wanted, return_exceptions=True)
        assert [type(end) for end in ends if isinstance(end, Exception)] == [Overloaded]
        assert len(commits) <= 10


def _take_turn(data: Path) -> IO[bytes]:
    held = (data / "safelight.db-turns").open("rb")
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


async def test_one_thing_after_the_other_is_done_over_the_same_connections(store: Store) -> None:
    def name(connection: Connection) -> int:
        return id(connection.connection.driver_connection)

    # All of them are opened by what is done at once.
    await asyncio.gather(*(store._database.read(_slow_name) for _ in range(3)), store._database.write(_slow_name))
    used = [await run(name) for run in (store._database.write, store._database.read) * 4]
    # A write is answered before its connection is back.
    assert len(set(used)) <= 2


def _slow_name(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1").scalar()
    time.sleep(0.05)


async def test_a_disk_that_refuses_to_write_is_said_and_outlived(store: Store, data: Path) -> None:
    await submit(store)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As where a quota is used up: another error than that of a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageFull, match="quota"):
            await submit(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await submit(store)
