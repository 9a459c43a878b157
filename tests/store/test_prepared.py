"""Statements that go past SQLAlchemy on SQLite do there what it does, as they do on PostgreSQL, where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, StatementError

from safelight.runs import RunStatus
from safelight.store import Store, claims
from safelight.store.prepared import Prepared
from safelight.store.schema import events, runs

from .making import end_one, submit

RENAME = sa.update(runs).where(runs.c.id == sa.bindparam("this_id")).returning(runs.c.deployment, runs.c.weight)
EVENT: Mapping[str, Any] = {"kind": "image", "at": 5.0, "image_index": 7, "error_code": None, "error_message": "secret"}


async def test_rows_are_those_that_sqlalchemy_gives(store: Store) -> None:
    run = await end_one(store)
    by_id = sa.select(runs).where(runs.c.id == sa.bindparam("this_id"))

    def read(connection: Connection) -> tuple[Any, Any]:
        wanted = {"this_id": run.id}
        return connection.execute(by_id, wanted).one(), Prepared(by_id).execute(connection, wanted).one()

    usual, prepared = await store._database.read(read)
    assert prepared._mapping == usual._mapping
    assert [type(value) for value in prepared] == [type(value) for value in usual]
    assert prepared.is_cancel_requested is False


async def test_numbers_come_back_as_their_columns_say(store: Store) -> None:
    run = await submit(store)
    statement = Prepared(RENAME)

    def write(connection: Connection) -> Any:
        return statement.execute(connection, {"this_id": run.id, "weight": 5}).one()

    assert type((await store._database.write(write)).weight) is float


async def test_an_update_sets_the_columns_that_its_parameters_name(store: Store) -> None:
    run = await submit(store)
    statement = Prepared(RENAME)

    def write(connection: Connection, **columns: object) -> Any:
        return statement.execute(connection, {"this_id": run.id, **columns}).one()

    assert (await store._database.write(write, weight=3.0)).weight == 3.0
    renamed = await store._database.write(write, deployment="half \ud800 and \0")
    assert (renamed.deployment, renamed.weight) == ("half ? and \ufffd", 3.0)


async def test_several_rows_are_written_and_an_error_undoes_them_without_telling_their_values(store: Store) -> None:
    run = await submit(store)
    insert = Prepared(sa.insert(events))

    def write(connection: Connection, *sequences: int) -> None:
        rows = [{**EVENT, "run_id": run.id, "sequence": sequence} for sequence in sequences]
        insert.execute_each(connection, rows)

    await store._database.write(write, 2, 3)
    with pytest.raises(IntegrityError) as raised:
        await store._database.write(write, 4, 3)
    assert "secret" not in str(raised.value)
    assert [event.sequence for event in await store.events.after(run.id)] == [1, 2, 3]


async def test_a_value_that_stands_in_the_statement_is_given_too(store: Store) -> None:
    run = await submit(store)
    await store.runs.claim("w", limit=1, lease_seconds=60.0)
    found = await store._database.read(claims.find, run.id)
    assert found is not None and (found.status, found.fence) == (RunStatus.RUNNING, 1)


async def test_a_parameter_that_was_forgotten_is_never_taken_for_nothing(store: Store) -> None:
    with pytest.raises((AssertionError, StatementError)):
        await store._database.write(lambda connection: Prepared(RENAME).execute(connection, {"weight": 1.0}))
