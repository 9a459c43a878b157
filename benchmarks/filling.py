"""A store with as many runs as a busy server has: rows only, written straight into the database,
without picture files."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from safelight.deployments import Deployment
from safelight.keys import Scope
from safelight.runs import RunParams
from safelight.store import Store
from safelight.store.sqlite import sqlite3

SUBJECTS = ("a red house", "a lighthouse", "two boats", "an old tree", "a train", "a cat asleep", "three balloons")
PLACES = ("by a lake", "in the snow", "at dusk", "on a hill", "under the stars", "in a garden", "by the sea")
NAMES = ("pinhole", "pinhole-large", "posters")
NUM_KEYS = 20
AT_ONCE = 50_000
DELIVERY_SHARE = 0.2


async def prepare(data: Path) -> tuple[list[str], str]:
    """Deployments and keys. The keys' ids and the secret of an admin key."""
    async with await Store.open(data) as store:
        for name in NAMES:
            await store.deployments.deploy(Deployment(name=name, version=0, model="pinhole"))
        made = [await store.keys.create(f"machine {n}", scopes=frozenset({Scope.PREDICT})) for n in range(NUM_KEYS)]
        _, admin = await store.keys.create("bench", scopes=frozenset({Scope.ADMIN}))
        return [key.id for key, _ in made], admin


def fill(data: Path, *, num_runs: int, num_days: float) -> str:
    """Runs spread evenly over the last days, oldest first. The secret of an admin key."""
    key_ids, admin = asyncio.run(prepare(data))
    chance = random.Random(1)
    began = time.time() - num_days * 86400
    database = sqlite3.connect(data / "safelight.db")
    database.executescript("PRAGMA synchronous=OFF; PRAGMA cache_size=-400000; PRAGMA journal_mode=MEMORY;")
    for first in range(0, num_runs, AT_ONCE):
        rows: dict[str, list[dict[str, object]]] = {}
        for number in range(first, min(first + AT_ONCE, num_runs)):
            at = began + (number + 1) / num_runs * (num_days * 86400 - 60)
            for table, row in rows_of_run(chance, at, key_ids):
                rows.setdefault(table, []).append(row)
        with database:
            for table, many in rows.items():
                _insert(database, table, many)
    database.execute("ANALYZE")
    database.close()
    return admin


def _insert(database: sqlite3.Connection, table: str, rows: list[dict[str, object]]) -> None:
    """All of them in one statement; every row of a table has the same columns."""
    columns, marks = ", ".join(rows[0]), ", ".join("?" * len(rows[0]))
    database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", [tuple(row.values()) for row in rows])


def rows_of_run(chance: random.Random, at: float, key_ids: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """The rows of one run that has ended: itself, its events and pictures, sometimes a delivery with an attempt."""
    run_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    prompt = f"{chance.choice(SUBJECTS)} {chance.choice(PLACES)}, number {chance.randrange(10**6)}"
    params = RunParams(
        prompt=prompt, seed=chance.randrange(2**32), num_images_per_prompt=chance.choice((1, 1, 1, 2, 4))
    )
    status = chance.choices(("succeeded", "failed", "cancelled"), (96, 3, 1))[0]
    is_told = chance.random() < DELIVERY_SHARE
    started, took = at + chance.random() * 4, 2 + chance.random() * 6
    yield (
        "runs",
        {
            "id": run_id,
            "project": "default",
            "key_id": chance.choice(key_ids),
            "deployment": chance.choices(NAMES, (80, 15, 5))[0],
            "deployment_version": 1,
            "params": json.dumps(asdict(params)),
            "status": status,
            "created_at": at,
            "started_at": started,
            "ended_at": started + took,
            "run_time_ms": took * 1000,
            "device_ms": took * 1000,
            "num_images": params.num_images_per_prompt,
            "pixel_steps": params.pixel_steps,
            "fence": 1,
            "num_attempts": 1,
            "num_events": 3,
            "is_cancel_requested": 0,
            "steps_done": 50,
            "steps_total": 50,
            "webhook_endpoint": "https://example.com/results" if is_told else None,
            "warnings": "[]",
            "error_code": "engine_error" if status == "failed" else None,
            "error_message": "the model gave no numbers" if status == "failed" else None,
        },
    )
    for sequence, (kind, when) in enumerate((("queued", at), ("started", started), (status, started + took)), 1):
        yield "events", {"run_id": run_id, "sequence": sequence, "kind": kind, "at": when}
    for index in range(params.num_images_per_prompt if status == "succeeded" else 0):
        yield "images", image_row(run_id, index, params.seed + index)
    if is_told:
        yield from delivery_rows(chance, run_id, started + took)


def image_row(run_id: str, index: int, seed: int) -> dict[str, object]:
    path = f"{run_id[:2]}/{run_id}/{index}-1.png"
    return {
        "run_id": run_id,
        "image_index": index,
        "seed": seed,
        "output_format": "png",
        "path": path,
        "num_bytes": 400_000,
        "sha256": uuid.uuid5(uuid.NAMESPACE_URL, path).hex * 2,
    }


def delivery_rows(chance: random.Random, run_id: str, at: float) -> Iterator[tuple[str, dict[str, object]]]:
    delivery_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    is_delivered = chance.random() < 0.98
    yield (
        "deliveries",
        {
            "id": delivery_id,
            "event_id": "evt_" + run_id.replace("-", ""),
            "run_id": run_id,
            "project": "default",
            "url": "https://example.com/results",
            "host": "example.com",
            "reason": "",
            "status": "delivered" if is_delivered else "failed",
            "created_at": at,
            "num_attempts": 1,
            "num_attempts_before_resend": 0,
        },
    )
    yield (
        "attempts",
        {
            "delivery_id": delivery_id,
            "number": 1,
            "at": at + 0.1,
            "duration_ms": 80.0,
            "status_code": 200 if is_delivered else 500,
            "response_excerpt": "ok",
        },
    )
