"""What PostgreSQL is asked to guarantee, what its errors become, and what happens while it is away."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import ConfigError, TryLater
from safelight.keys import Allowance, Scope
from safelight.runs import RunParams, RunStatus
from safelight.store import Store
from safelight.store.database import open_engine
from safelight.store.hint_channel import CHANNEL, HintChannel
from safelight.store.search import RunSearch
from tests.postgres import MISSING, find_programs, running

from .making import HOOK, SUCCEEDED, Place, claim_one, draw, end_one, kinds_of, new_run, on_postgresql, submit

pytestmark = [on_postgresql, pytest.mark.usefixtures("kind")]


def show(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"SHOW {name}").scalar()


async def test_a_commit_survives_power_loss_whatever_the_server_is_set_to(place: Place) -> None:
    with open_engine(place.data, place.url).connect() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar()
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
        connection.commit()
    async with await place.open() as store:
        assert await store._database.write(show, "synchronous_commit") == "on"
        assert await store._database.write(show, "transaction_isolation") == "read committed"
        assert await store._database.read(show, "transaction_isolation") == "repeatable read"
        assert await store._database.write(show, "lock_timeout") == "10s"


async def test_a_hint_that_comes_while_a_process_joins_harms_nothing(place: Place) -> None:
    engine = open_engine(place.data, place.url)
    joining = await asyncio.to_thread(HintChannel, engine)
    with engine.connect() as other:
        other.exec_driver_sql(f"NOTIFY {CHANNEL}, 'queue'")
        other.commit()
    assert joining._connection is not None
    joining._connection.execute("SELECT 1")
    joining.open(lambda topics: None)
    joining.close()
    engine.dispose()


async def test_a_connection_that_could_not_listen_is_nobody_elses(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(place.data, place.url)
    monkeypatch.setattr("safelight.store.hint_channel.CHANNEL", "no name of a channel")
    joining = await asyncio.to_thread(HintChannel, engine)
    for _ in range(2):
        # The next try lets go of what the one before had.
        assert joining._connection is None
        joining._connection = joining._join()
        with engine.connect() as other:
            other.execute(sa.text("INSERT INTO workers VALUES ('w', 1.0, '{}')"))
            other.rollback()
    assert (await store._database.read(lambda connection: connection.exec_driver_sql("TABLE workers").all())) == []
    engine.dispose()


async def test_every_frequent_query_can_follow_an_index(store: Store) -> None:
    """With few rows a walk is cheapest; where walks are forbidden, one that is left has no index to follow."""
    limited = Allowance(requests_per_minute=9, images_per_day=9, max_queued_runs=9)
    key, _ = await store.keys.create("limited", scopes=frozenset({Scope.PREDICT}), allowance=limited)
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            with connection.connection.cursor() as found:
                found.execute("SET LOCAL enable_seqscan = off")
                found.execute("EXPLAIN " + statement, parameters)
                plans.extend(f"{step} <- {statement}" for (step,) in found.fetchall())

    sa.event.listen(store._database._engine, "before_cursor_execute", explain)
    await end_one(store, webhook_endpoint=HOOK, idempotency_key="k", key_id=key.id)
    for wanted in ({}, {"project": "p"}, {"project": "p", "status": RunStatus.FAILED}, {"deployment": "d"}):
        await store.runs.list(**wanted, created_before=1e12)  # type: ignore[arg-type]
    await store.search.runs(RunSearch(status=RunStatus.FAILED, text="cat"), limit=5)
    await store.runs.backlog()
    await store.runs.queue_position((await submit(store)).id)
    await store.runs.requeue_lost(max_attempts=3)
    await store.ledger.standings(key.id)
    assert len(plans) > 30
    assert [plan for plan in plans if "Seq Scan on runs" in plan.split("<-")[0]] == []


async def test_the_columns_of_a_statement_are_described_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from safelight.store.lean_cursor import LeanCursor

    described = []
    describe = LeanCursor.describe

    def describe_and_count(cursor: LeanCursor) -> Any:
        described.append(cursor)
        return describe(cursor)

    monkeypatch.setattr(LeanCursor, "describe", describe_and_count)

    def ask(connection: Any) -> Any:
        return connection.execute(sa.select(sa.literal_column("7").label("new_here"))).one()

    assert (await store._database.read(ask)).new_here == 7
    assert described
    described.clear()
    assert (await store._database.read(ask)).new_here == 7
    assert not described


async def test_two_writers_that_wait_for_each_other_both_end(store: Store, neighbour: Store) -> None:
    first, second = [await submit(store) for _ in range(2)]

    def touch_both(connection: Connection, one: str, other: str) -> None:
        for run_id in (one, other):
            connection.execute(sa.text("UPDATE runs SET steps_total = steps_total + 1 WHERE id = :id"), {"id": run_id})
            time.sleep(0.2)

    await asyncio.gather(
        store._database.write(touch_both, first.id, second.id),
        neighbour._database.write(touch_both, second.id, first.id),
    )
    assert [(await store.runs.get(run.id)).steps_total for run in (first, second)] == [2, 2]


async def test_a_row_that_stays_locked_is_to_try_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.database.BUSY_SECONDS", 0.3)
    async with await place.open() as store:
        run = await submit(store)
        with open_engine(place.data, place.url).connect() as other:
            other.exec_driver_sql("SELECT * FROM runs FOR UPDATE")
            with pytest.raises(TryLater):
                await store.runs.cancel(run.id)
            assert await store.runs.claim("worker", limit=1, lease_seconds=60) == []
            assert (await store.runs.get(run.id)).status is RunStatus.QUEUED
            other.rollback()
        assert (await store.runs.cancel(run.id)).status is RunStatus.CANCELLED


async def test_claims_and_cancels_of_one_run_at_once_end_in_one_of_two_ways(store: Store, neighbour: Store) -> None:
    for _ in range(20):
        run = await submit(store, webhook_endpoint=HOOK)
        claimed, cancelled = await asyncio.gather(
            store.runs.claim("worker", limit=1, lease_seconds=60), neighbour.runs.cancel(run.id)
        )
        if claimed:
            assert cancelled.status is RunStatus.RUNNING and cancelled.is_cancel_requested
            await store.runs.release(claimed[0])
        assert (await store.runs.get(run.id)).status is RunStatus.CANCELLED
        assert (await kinds_of(store, run.id))[-1] == "cancelled"


async def test_deploying_at_once_gives_each_a_version(store: Store, neighbour: Store) -> None:
    from safelight.deployments import Deployment

    asked = Deployment(name="houses", version=0, model="pinhole")
    made = await asyncio.gather(*(one.deployments.deploy(asked) for one in (store, neighbour) * 4))
    assert sorted(deployment.version for deployment in made) == list(range(1, 9))


async def test_connections_of_before_a_restart_are_replaced_unnoticed(place: Place, store: Store) -> None:
    run = await submit(store)
    await _end_other_connections(place)
    assert (await store.runs.get(run.id)).id == run.id
    await _end_other_connections(place)
    await submit(store)
    await _end_other_connections(place)
    await asyncio.gather(*(submit(store) for _ in range(5)))
    assert (await store.runs.backlog()).num_queued == 7


async def test_a_commit_that_nobody_answered_is_not_done_twice(place: Place, store: Store) -> None:
    run = await submit(store)

    def count_and_lose(connection: Connection) -> None:
        connection.execute(sa.text("UPDATE runs SET steps_total = steps_total + 1"))
        with open_engine(place.data, place.url).begin() as other:
            other.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid <> pg_backend_pid()")

    with pytest.raises(TryLater):
        await store._database.write(count_and_lose)
    assert (await store.runs.get(run.id)).steps_total == 0
    await submit(store)


async def test_hints_come_back_after_the_connection_was_lost(place: Place, store: Store, neighbour: Store) -> None:
    await _end_other_connections(place)
    deadline = time.monotonic() + 20
    with neighbour.notifications.listen("queue") as listener:
        while not await listener.wait(0.1):
            assert time.monotonic() < deadline
            store.notifications.publish("queue")


async def test_the_sweep_keeps_what_is_named_whatever_the_language_of_the_server(store: Store) -> None:
    for first in ("a9", "a0", "ff", "00"):
        await submit(store, id=first + new_run().id[2:])
        claim = await claim_one(store)
        await draw(store, claim)
        await store.runs.finish(claim, SUCCEEDED)
    assert await store.sweep_images(older_than_seconds=-1) == 0


async def test_a_prompt_that_postgresql_cannot_read_breaks_no_search(store: Store) -> None:
    for prompt in ("a Red house", "a red \0 house", "a red \ud800 house", "a red \U0001f3e0", "a \\u0000 green one"):
        await submit(store, params=RunParams(prompt=prompt))
    for text, expected in (("RED", 4), ("\U0001f3e0", 1), ("green", 1), ("\0", 0), ("blue", 0)):
        found, _ = await store.search.runs(RunSearch(text=text), limit=10)
        assert len(found) == expected, text


async def test_the_figures_of_a_day(store: Store) -> None:
    for _ in range(2):
        await submit(store, webhook_endpoint=HOOK)
        claim = await claim_one(store)
        await draw(store, claim)
        await store.runs.finish(claim, SUCCEEDED)
    activity = await store.figures.activity()
    assert [(count.hours_ago, count.num_images) for count in activity.images] == [(0, 2)]
    assert sum((await store.figures.runs_by_day("pinhole", num_days=2)).values()) == 2
    [endpoint] = await store.figures.endpoints(seconds=60)
    assert (endpoint.num_pending, endpoint.num_delivered) == (2, 0)


async def test_a_database_of_another_encoding_is_refused(place: Place, tmp_path: Path, postgres: Any) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        with pytest.raises(ConfigError, match="UTF8"):
            await Store.open(tmp_path / "latin", database_url=postgres.url("latin"))
    finally:
        postgres.execute("DROP DATABASE latin WITH (FORCE)")


async def test_without_its_driver_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"safelight\[postgres\]"):
        await Store.open(tmp_path / "data", database_url="postgresql://nobody@127.0.0.1:1/nothing")


async def test_a_database_that_is_away_is_to_try_later_and_comes_back(tmp_path: Path) -> None:
    if find_programs() is None:
        pytest.skip(MISSING)
    with running() as server:
        async with await Store.open(tmp_path / "data", database_url=server.url()) as store:
            before = await end_one(store)
            for how in (signal.SIGINT, signal.SIGQUIT):
                server.stop(how=how)
                for attempt in (submit(store), store.runs.get(before.id), store.keys.count()):
                    with pytest.raises(TryLater):
                        await attempt
                answers = await asyncio.gather(*(submit(store) for _ in range(3)), return_exceptions=True)
                assert all(isinstance(answer, TryLater) for answer in answers)
                server.start()
                assert (await store.runs.get(before.id)).status is RunStatus.SUCCEEDED
                await end_one(store)
    with pytest.raises(TryLater):
        await Store.open(tmp_path / "data", database_url=server.url())


async def _end_other_connections(place: Place) -> None:
    with open_engine(place.data, place.url).begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await asyncio.sleep(0.1)
