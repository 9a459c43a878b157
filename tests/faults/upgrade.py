"""Promise 19: a database of every schema there was, full of runs, is brought up to date and means what it meant."""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from safelight.runs import NewRun, Outcome, RunParams, RunStatus
from safelight.store import Store
from safelight.store.database import open_engine
from safelight.store.migrations import alembic_config, migrate

from .figures import Figure, check

PARAMS = '{"prompt": "a lamp", "height": 64, "width": 72, "num_inference_steps": 10, "num_images_per_prompt": 2}'
FILLED_LATER = {"deliveries": {"host"}, "runs": {"num_images", "pixel_steps"}}
"""What a migration works out from other columns."""

NUM_QUEUED = 10
FUTURE = ("runs", "events", "images", "deliveries", "deployments", "keys", "webhook_endpoints", "placements")

Row = dict[str, Any]
Rows = Callable[[int], Iterable[Row]]


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
        num_rows += sum(map(len, before.values()))
        begun = time.monotonic()
        migrate(engine)
        slowest = max(slowest, time.monotonic() - begun)
        faults += [f"from {revision}: {fault}" for fault in _changed(before, _everything(engine))]
        with engine.connect() as connection:
            _check(connection)
        engine.dispose()
        faults += [f"from {revision}: {fault}" for fault in asyncio.run(_use(folder, url, num_runs))]
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
            kept = [{key: value for key, value in row.items() if key in table.columns} for row in made]
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


def _changed(before: Mapping[str, list[Row]], after: Mapping[str, list[Row]]) -> list[str]:
    faults = []
    for name, rows in before.items():
        later = after.get(name, [])
        faults += check(len(rows) == len(later), f"{name} had {len(rows)} rows and has {len(later)}")
        ignored = FILLED_LATER.get(name, set())
        for old, new in zip(rows, later, strict=False):
            changed = {key for key in old.keys() - ignored if new.get(key) != old[key]}
            faults += check(not changed, f"{name} changed {sorted(changed)}")
    return faults


async def _use(folder: Path, url: str | None, num_runs: int) -> list[str]:
    """What is asked of a store every day, and of one that a newer version has been at."""
    async with await Store.open(folder, database_url=url) as store:
        runs, _ = await store.runs.list(limit=50)
        faults = check(len(runs) == min(50, num_runs), f"{len(runs)} runs are listed")
        faults += check(all(run.params.width == 72 for run in runs), "parameters are not what they were")
        counted = sum(usage.num_runs for usage in await store.ledger.usage(since=0))
        faults += check(counted == num_runs, f"{counted} runs are counted")
        [delivery] = await store.deliveries.list(run_id=run_id(0))
        faults += check(delivery.host == "example.com" and len(delivery.attempts) == 1, f"a delivery is {delivery}")
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
    return faults


def _add_future_columns(connection: Connection) -> None:
    """A newer version has migrated while this process works: it adds, and never takes away."""
    for table in FUTURE:
        connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN of_the_future TEXT"))


def run_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def _runs(number: int) -> Iterable[Row]:
    is_queued = number < NUM_QUEUED
    yield {
        "id": run_id(number),
        "project": "p",
        "key_id": "k",
        "deployment": "d",
        "deployment_version": 1,
        "params": PARAMS,
        "status": "queued" if is_queued else "succeeded",
        "created_at": 1000.0 + number,
        "started_at": None if is_queued else 1000.5 + number,
        "ended_at": None if is_queued else 1001.5 + number,
        "run_time_ms": None if is_queued else 12.5,
        "fence": 0 if is_queued else 1,
        "num_attempts": 0 if is_queued else 1,
        "num_events": 1 if is_queued else 3,
        "is_cancel_requested": False,
        "steps_done": 0,
        "steps_total": 0,
        "webhook_endpoint": "https://EXAMPLE.com/hook",
        "idempotency_key": f"key-{number}",
        "body_digest": "digest",
        "warnings": "[]",
        "num_images": 2,
        "pixel_steps": 92160,
        "weight": 1.0,
        "provenance": None,
    }


def _events(number: int) -> Iterable[Row]:
    kinds = ("queued",) if number < NUM_QUEUED else ("queued", "started", "succeeded")
    for sequence, kind in enumerate(kinds, 1):
        yield {"run_id": run_id(number), "sequence": sequence, "kind": kind, "at": 1000.0 + number}


def _images(number: int) -> Iterable[Row]:
    row = {"run_id": run_id(number), "image_index": 0, "seed": 2**53 - 1, "output_format": "png"}
    if number >= NUM_QUEUED:
        yield row | {"path": f"00/{run_id(number)}/0-1.png", "num_bytes": 3, "sha256": "abc"}


def _deliveries(number: int) -> Iterable[Row]:
    status = ("pending", "delivered", "failed")[number % 3]
    yield {
        "id": f"delivery-{number:05d}",
        "event_id": f"event-{number}",
        "run_id": run_id(number),
        "project": "p",
        "url": "https://EXAMPLE.com/hook",
        "host": "example.com",
        "reason": "",
        "status": status,
        "created_at": 1000.0 + number,
        "next_attempt_at": 9e9 if status == "pending" else None,
        "num_attempts": 1,
        "num_attempts_before_resend": 0,
    }


def _attempts(number: int) -> Iterable[Row]:
    yield {
        "delivery_id": f"delivery-{number:05d}",
        "number": 1,
        "at": 1002.0,
        "duration_ms": 3.5,
        "status_code": 500,
        "error": None,
        "response_excerpt": "oh",
    }


def _only_once(row: Row) -> Rows:
    return lambda number: [row] if number == 0 else []


DEPLOYMENT = {"name": "d", "version": 1, "model": "m", "defaults": "{}", "limits": "{}", "embed_metadata": True}
KEY = {"id": "k", "name": "laptop", "prefix": "sl_live_x", "digest": "x", "project": "p", "scopes": "predict"}
ENDPOINT = {"id": "e", "project": "other", "url": "https://example.com/", "host": "example.com", "events": "failed"}

OLD: Mapping[str, Rows] = {
    "deployments": _only_once(DEPLOYMENT | {"created_at": 1.0}),
    "keys": _only_once(KEY | {"created_at": 1.0}),
    "runs": _runs,
    "events": _events,
    "images": _images,
    "webhook_endpoints": _only_once(
        ENDPOINT | {"status": "enabled", "status_reason": "", "created_at": 1.0, "secret_number": 1}
    ),
    "endpoint_secrets": _only_once({"endpoint_id": "e", "number": 1, "created_at": 1.0}),
    "deliveries": _deliveries,
    "attempts": _attempts,
}
