"""Promise 19: a database of every schema there was, full of runs, is brought up to date and means what it meant."""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from safelight.runs import NewRun, Outcome, RunParams, RunStatus
from safelight.store import Store
from safelight.store.database import open_engine
from safelight.store.migrations import alembic_config, migrate

from .figures import Figure, check
from .old_rows import NUM_QUEUED, OLD, Row, run_id

FUTURE = ("runs", "events", "images", "deliveries", "deployments", "keys", "webhook_endpoints", "placements")

FILLED_LATER: Mapping[str, Mapping[str, Callable[[Row], object]]] = {
    "deliveries": {"host": lambda row: "example.com"},
    "runs": {"num_images": lambda row: 2, "pixel_steps": lambda row: 92160},
    "keys": {"origin_id": lambda row: row["id"]},
}
"""What a migration works out from the other columns of a row."""


def revisions() -> list[str]:
    """Every schema there was, the first one first, but for the newest."""
    known = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in reversed(list(known.walk_revisions()))][:-1]


def upgrade(name: str, places: Iterable[tuple[Path, str | None]], *, num_runs: int) -> Figure:
    """Each schema in a place of its own."""
    faults: list[str] = []
    num_rows, slowest = 0, 0.0
    for (folder, url), revision in zip(places, revisions(), strict=False):
        folder.mkdir()
        engine = open_engine(folder, url)
        _make(engine, revision, num_runs)
        before = _everything(engine)
        assert not (empty := _empty(before)), f"nothing is in {', '.join(empty)} of {revision}"
        num_rows += sum(map(len, before.values()))
        begun = time.monotonic()
        migrate(engine)
        slowest = max(slowest, time.monotonic() - begun)
        faults += [f"from {revision}: {fault}" for fault in _changed(before, _everything(engine))]
        with engine.connect() as connection:
            _check(connection)
        engine.dispose()
        faults += [f"from {revision}: {fault}" for fault in asyncio.run(_use(folder, url, before))]
    done = f"{num_runs} runs in each of {len(revisions())} schemas, brought up to date"
    figure = f"{num_rows} rows, {len(faults)} changed in meaning; the slowest took {slowest:.1f} s"
    return Figure(f"19 ({name})", done, figure, faults)


def _make(engine: Engine, revision: str, num_runs: int) -> None:
    config = alembic_config()
    with engine.execution_options(is_writing=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        there = sa.MetaData()
        there.reflect(connection)
        for name, rows in OLD.items():
            if name not in there.tables:
                continue
            table = there.tables[name]
            made = itertools.chain.from_iterable(rows(number) for number in range(num_runs))
            # Before there were registered endpoints nothing was sent to any.
            known = [row for row in made if row.get("endpoint_id") is None or "endpoint_id" in table.columns]
            kept = [{key: value for key, value in row.items() if key in table.columns} for row in known]
            connection.execute(sa.insert(table), kept)


def _check(connection: Connection) -> None:
    config = alembic_config()
    config.stdout = io.StringIO()
    config.attributes["connection"] = connection
    command.check(config)


def _everything(engine: Engine) -> Mapping[str, list[Row]]:
    there = sa.MetaData()
    there.reflect(engine)
    with engine.connect() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for name, table in there.tables.items()
            if name != "alembic_version"
        }


def _empty(before: Mapping[str, list[Row]]) -> list[str]:
    """The tables without a row and the columns without a value: what is not there cannot be seen to change."""
    empty = [name for name, rows in before.items() if not rows]
    for name, rows in before.items():
        empty += [f"{name}.{key}" for key in (rows or [{}])[0] if all(row[key] is None for row in rows)]
    return empty


def _changed(before: Mapping[str, list[Row]], after: Mapping[str, list[Row]]) -> list[str]:
    faults = []
    for name, rows in before.items():
        later = after.get(name, [])
        faults += check(len(rows) == len(later), f"{name} had {len(rows)} rows and has {len(later)}")
        worked_out = FILLED_LATER.get(name, {})
        for old, new in zip(rows, later, strict=False):
            changed = {key for key in old if new.get(key) != old[key]}
            changed |= {key for key, value_of in worked_out.items() if new.get(key) != value_of(new)}
            faults += check(not changed, f"{name} changed {sorted(changed)}")
    return faults


async def _use(folder: Path, url: str | None, before: Mapping[str, list[Row]]) -> list[str]:
    """What is asked of a store every day, and of one that a newer version has been at."""
    num_runs = len(before["runs"])
    async with await Store.open(folder, database_url=url) as store:
        faults = await _read(store, before)
        await store._database.write(_add_future_columns)
        new = NewRun(
            id=run_id(num_runs),
            project="p",
            key_id="k",
            deployment="d",
            deployment_version=1,
            params=RunParams(prompt="x"),
        )
        await store.runs.create(new, max_queued=num_runs)
        claims = await store.runs.claim("w", limit=NUM_QUEUED + 1, lease_seconds=60)
        faults += check([claim.run.id for claim in claims][-1] == new.id, "the queue is not in its order")
        for claim in claims:
            await store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0))
        ended = [await store.runs.get(claim.run.id) for claim in claims]
        num_ended = sum(run.status is RunStatus.SUCCEEDED for run in ended)
        faults += check(num_ended == min(NUM_QUEUED, num_runs) + 1, f"{num_ended} runs were finished")
        told = await store.deliveries.list(run_id=new.id)
        faults += check([each.endpoint_id for each in told] == _registered(before)[:1], "endpoints are not told")
    return faults


async def _read(store: Store, before: Mapping[str, list[Row]]) -> list[str]:
    """What the old rows say to today's program."""
    num_runs = len(before["runs"])
    runs, _ = await store.runs.list(limit=50)
    faults = check(len(runs) == min(50, num_runs), f"{len(runs)} runs are listed")
    faults += check(all(run.params.width == 72 for run in runs), "parameters are not what they were")
    num_gone = sum(row["num_runs"] for row in before.get("spent", ()))
    counted = sum(usage.num_runs for usage in await store.ledger.usage(since=0))
    faults += check(counted == num_runs + num_gone, f"{counted} runs are counted")
    [delivery] = [each for each in await store.deliveries.list(run_id=run_id(0)) if each.endpoint_id is None]
    faults += check(delivery.host == "example.com" and len(delivery.attempts) == 1, f"a delivery is {delivery}")
    weight = (await store.keys.get("k")).allowance.weight
    faults += check(weight == (2.0 if "allowance" in before["keys"][0] else 1.0), f"a key weighs {weight}")
    inputs = [each.path for each in await store.runs.inputs(run_id(0))]
    faults += check(inputs == [row["path"] for row in before.get("inputs", ())][:1], f"a run begins from {inputs}")
    placed = [each.worker_id for each in await store.figures.placements()]
    faults += check(placed == ["w"], f"{placed} have loaded models")
    endpoints = await store.webhook_endpoints.list()
    faults += check([each.id for each in endpoints] == _registered(before), f"endpoints are {endpoints}")
    for each in endpoints[:1]:
        num_secrets = len(await store.webhook_endpoints.secrets(each.id))
        faults += check(num_secrets == 2, f"{num_secrets} secrets sign")
        faults += check(bool(await store.deliveries.list(endpoint_id=each.id)), "an endpoint's deliveries are gone")
    return faults


def _registered(before: Mapping[str, list[Row]]) -> list[str]:
    return [row["id"] for row in before.get("webhook_endpoints", ())]


def _add_future_columns(connection: Connection) -> None:
    """A newer version has migrated while this process works: it adds, and never takes away."""
    for table in FUTURE:
        connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN of_the_future TEXT"))
