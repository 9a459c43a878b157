"""The filled store that benchmarks measure on is one that the store itself could have written."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.filling import fill
from safelight.store import Store


async def test_a_filled_store_is_read_as_any_other(tmp_path: Path) -> None:
    await asyncio.to_thread(fill, tmp_path, num_runs=40, num_days=2.0)
    async with await Store.open(tmp_path) as store:
        runs, _ = await store.runs.list(limit=50)
        deliveries = await store.deliveries.list(limit=50)
        activity = await store.figures.activity()
    assert len(runs) == 40
    assert deliveries
    assert activity.images
    assert any(delivery.attempts for delivery in deliveries)
