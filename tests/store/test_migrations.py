"""Migrations: they end at the schema, run once however many open the store, and never go backwards."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from safelight.errors import ConfigError
from safelight.keys import Allowance
from safelight.store import Store
from safelight.store.database import open_engine
from safelight.store.migrations import alembic_config, migrate
from safelight.store.schema import REVISION, metadata
from safelight.store.sqlite import sqlite3

from .making import Place, on_sqlite


def everything_in(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name <> 'alembic_version'"
        )
        return {_in_any_order("".join(sql.replace('"', "").split())) for (sql,) in found}


def _in_any_order(sql: str) -> str:
    """A column that was added later stands behind the constraints."""
    start, body = sql.split("(", 1)
    body, end = body.rsplit(")", 1)
    return f"{start}({','.join(sorted(body.split(',')))}){end}"


def test_migrations_end_at_the_schema(migrated: Path, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    metadata.create_all(engine)
    assert everything_in(migrated / "safelight.db") == everything_in(tmp_path / "made.db")


def test_alembic_finds_nothing_to_migrate(place: Place) -> None:
    config = alembic_config()
    with open_engine(place.data, place.url).connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_the_newest_migration_is_the_one_the_schema_names() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [REVISION]


@on_sqlite
def test_a_database_up_to_date_is_left_alone(data: Path) -> None:
    before = (data / "safelight.db").read_bytes()
    migrate(open_engine(data, None))
    assert (data / "safelight.db").read_bytes() == before


async def test_a_database_of_a_newer_version_is_refused(place: Place) -> None:
    with open_engine(place.data, place.url).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer Safelight"):
        await place.open()


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    empty_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_place.data.mkdir()
    engine = open_engine(empty_place.data, empty_place.url)
    monkeypatch.setattr("alembic.op.create_index", None)
    with pytest.raises(TypeError):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == []
    monkeypatch.undo()
    migrate(engine)
    assert "runs" in sa.inspect(engine).get_table_names()


@on_sqlite
async def test_one_process_at_a_time_prepares_a_folder(data: Path) -> None:
    with (data / "opening.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        opening = asyncio.create_task(Store.open(data))
        await asyncio.sleep(0.1)
        assert not opening.done()
    async with await opening as store:
        assert await store.keys.count() == 0


async def test_runs_and_keys_of_before_there_were_allowances_count_too(tmp_path: Path) -> None:
    engine, config = open_engine(tmp_path, None), alembic_config()
    with engine.execution_options(is_writing=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        params = '{"prompt": "x", "height": 64, "width": 72, "num_inference_steps": 10, "num_images_per_prompt": 3}'
        run = "('r', 'p', 'k', 'd', 1, ?, 'queued', 1.0, 0, 0, 1, 0, 0, 0, '[]')"
        columns = "id, project, key_id, deployment, deployment_version, params, status, created_at, fence, num_attempts"
        columns += ", num_events, is_cancel_requested, steps_done, steps_total, warnings"
        connection.exec_driver_sql(f"INSERT INTO runs ({columns}) VALUES {run}", (params,))
        key = "('k', 'laptop', 'sl_live_12345678', 'x', 'p', 'predict', 1.0)"
        connection.exec_driver_sql(
            f"INSERT INTO keys (id, name, prefix, digest, project, scopes, created_at) VALUES {key}"
        )
    engine.dispose()
    async with await Store.open(tmp_path) as store:
        (claim,) = await store.runs.claim("w", limit=1, lease_seconds=60)
        assert (claim.run.id, claim.run.weight, claim.run.params.width) == ("r", 1.0, 72)
        counted = sa.text("SELECT num_images, pixel_steps FROM runs")
        assert await store._database.read(lambda connection: tuple(connection.execute(counted).one())) == (3, 138240)
        assert (await store.keys.get("k")).allowance == Allowance()
        assert (await store.keys.rotate("laptop"))[0].name == "laptop"
        assert [usage.num_runs for usage in await store.ledger.usage(since=0)] == [1]


OLD = """
INSERT INTO runs (id, project, deployment, deployment_version, params, status, created_at, ended_at, fence,
    num_attempts, num_events, is_cancel_requested, steps_done, steps_total, webhook_endpoint, warnings)
    VALUES ('r1', 'mine', 'd', 1, '{"prompt": "a lamp"}', 'succeeded', 1.0, 2.5, 1, 1, 3, FALSE, 5, 5,
    'https://EXAMPLE.com/a', '[]');
INSERT INTO events VALUES ('r1', 1, 'queued', 1.0, NULL, NULL, NULL);
INSERT INTO images VALUES ('r1', 0, 7, 'png', 'r1/r1/0-1.png', 3, 'abc');
INSERT INTO deliveries VALUES ('d1', 'evt_r1', 'r1', 'mine', 'https://EXAMPLE.com/a', 'pending', 2.5, 9e9, 2, 1);
INSERT INTO attempts VALUES ('d1', 1, 3.0, 4.0, 500, NULL, 'oh'), ('d1', 2, 5.0, 6.0, NULL, 'reset', '');
INSERT INTO keys VALUES ('k1', 'laptop', 'sl_live_x', 'digest', 'mine', 'read', 1.0, NULL, NULL, NULL);
"""


async def test_a_database_of_the_first_version_keeps_every_row(empty_place: Place) -> None:
    empty_place.data.mkdir(exist_ok=True)
    engine, config = open_engine(empty_place.data, empty_place.url), alembic_config()
    with engine.execution_options(is_writing=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in OLD.split(";\n"):
            connection.exec_driver_sql(statement) if statement.strip() else None
    engine.dispose()
    async with await empty_place.open() as store:
        run = await store.runs.get("r1")
        assert (run.params.prompt, run.ended_at, run.images_expired_at) == ("a lamp", 2.5, None)
        assert [image.sha256 for image in run.images] == ["abc"]
        assert [event.kind for event in await store.events.after("r1")] == ["queued"]
        assert [key.name for key in await store.keys.list()] == ["laptop"]
        [delivery] = await store.deliveries.list()
        assert (delivery.id, delivery.run_id, delivery.project, delivery.endpoint_id) == ("d1", "r1", "mine", None)
        assert (delivery.url, delivery.host, delivery.reason) == ("https://EXAMPLE.com/a", "example.com", "")
        assert (delivery.status, delivery.next_attempt_at, delivery.num_attempts) == ("pending", 9e9, 2)
        assert [(tried.status_code, tried.error) for tried in delivery.attempts] == [(500, None), (None, "reset")]
    engine = open_engine(empty_place.data, empty_place.url)
    assert not {name for name in sa.inspect(engine).get_table_names() if name.startswith("kept")}
    engine.dispose()
