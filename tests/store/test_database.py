"""What the database is asked to guarantee, and what its errors become."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from safelight.errors import ConfigError, NotFound, TryLater
from safelight.store import Store, queueing
from safelight.store.database import now
from safelight.store.sqlite import HAS_SOUND_WAL, sqlite3

from .making import HOOK, Place, new_run, submit


async def test_the_clock_is_the_databases_and_to_the_millisecond(store: Store) -> None:
    def at(connection: Connection) -> float:
        return connection.execute(sa.select(now())).scalar_one()

    before = time.time()
    told = await store._database.read(at)
    assert before - 0.002 <= told <= time.time() + 0.002
    assert told == round(told, 3)


async def test_a_write_that_fails_undoes_itself_and_no_other(store: Store) -> None:
    def submit_and_fail(connection: Connection) -> None:
        queueing.create(connection, new_run(), max_queued=100)
        raise NotFound("on purpose")

    writes: list[Any] = [
        submit(store) if number % 2 else store._database.write(submit_and_fail) for number in range(20)
    ]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(answer, NotFound) for answer in answers] == [True, False] * 10
    assert (await store.runs.backlog()).num_queued == 10


async def test_a_write_that_breaks_the_transaction_breaks_no_other(store: Store) -> None:
    def roll_back(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("SELECT broken")

    writes: list[Any] = [submit(store) if number != 3 else store._database.write(roll_back) for number in range(8)]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(answer, Exception) for answer in answers] == [number == 3 for number in range(8)]
    assert (await store.runs.backlog()).num_queued == 7


async def test_a_connection_that_broke_is_not_written_with_again(store: Store) -> None:
    def break_it(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.close()
        submit_with(connection)

    def submit_with(connection: Connection) -> None:
        queueing.create(connection, new_run(), max_queued=100)

    for _ in range(3):
        with pytest.raises((DBAPIError, TryLater)):
            await store._database.write(break_it)
        await submit(store)
    assert (await store.runs.backlog()).num_queued == 3


async def test_idle_connections_can_be_closed_under_those_at_work(store: Store) -> None:
    reading, may_end = threading.Event(), threading.Event()

    def hold(connection: Connection) -> int:
        reading.set()
        assert may_end.wait(10)
        return connection.execute(queueing.COUNT_QUEUED).scalar_one()

    await submit(store)
    slow = asyncio.create_task(store._database.read(hold))
    assert await asyncio.to_thread(reading.wait, 10)
    await store.runs.backlog()
    await store.release_memory()
    assert store._database._engine.pool.status().count("Connections in pool: 0") == 1
    await submit(store)
    may_end.set()
    assert await slow == 2
    assert (await store.runs.backlog()).num_queued == 2


async def test_a_glance_sees_what_others_have_just_written(store: Store, neighbour: Store, kind: str) -> None:
    threads: list[threading.Thread] = []

    def count(connection: Connection) -> int:
        threads.append(threading.current_thread())
        return connection.execute(queueing.COUNT_QUEUED).scalar_one()

    for number in (1, 2):
        await submit(neighbour)
        assert await store._database.glance(count) == number
    await store.release_memory()
    assert await store._database.glance(count) == 2
    is_on_loop = kind == "sqlite" and HAS_SOUND_WAL
    assert {thread is threading.main_thread() for thread in threads} == {is_on_loop}


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_a_glance_keeps_the_loop_waiting_for_nobody(store: Store) -> None:
    def look(connection: Connection) -> str:
        if threading.current_thread() is threading.main_thread():
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 0
            raise DBAPIError("SELECT", None, sqlite3.OperationalError("database is locked"))
        return "read on a thread"

    assert await store._database.glance(look) == "read on a thread"
    with pytest.raises(NotFound):
        await store.runs.look_again("no-such-run")


async def test_a_cancelled_caller_leaves_a_whole_run_or_none(store: Store) -> None:
    for delay in (0.0, 0.001, 0.003, 0.01):
        asking = asyncio.create_task(store.runs.create(new_run(webhook_endpoint=HOOK), max_queued=100))
        await asyncio.sleep(delay)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await submit(store)
    for run in (await store.runs.list())[0]:
        assert len(await store.events.after(run.id)) == 1


async def test_a_write_that_is_taken_back_before_it_begins_never_happens(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def hold(connection: Connection) -> bool:
        has_begun.set()
        return may_end.wait(10)

    slow = asyncio.create_task(store._database.write(hold))
    await asyncio.to_thread(has_begun.wait)
    cancelled = asyncio.create_task(submit(store))
    await asyncio.sleep(0)
    cancelled.cancel()
    with monkeypatch.context() as impatient, pytest.raises(TryLater):
        impatient.setattr("safelight.store.database.BUSY_SECONDS", 0.05)
        await submit(store)
    may_end.set()
    assert await slow
    await submit(store)
    assert (await store.runs.backlog()).num_queued == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "mysql://h/d"])
async def test_a_database_this_version_cannot_use_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="database_url"):
        await Store.open(tmp_path / "data", database_url=url)


async def test_the_data_folder_is_nobody_elses(tmp_path: Path) -> None:
    async with await Store.open(tmp_path / "deep" / "data"):
        assert (tmp_path / "deep" / "data").stat().st_mode & 0o777 == 0o700


async def test_a_closed_store_refuses_at_once(place: Place) -> None:
    async with await place.open() as store:
        pass
    async with asyncio.timeout(2):
        with pytest.raises(TryLater):
            await submit(store)
