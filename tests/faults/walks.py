"""Promise 13: the same long walks through the life of runs on both databases."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.postgres import running
from tests.store.making import Place
from tests.store.test_machine import walk

from .figures import Figure


async def _make(place: Place) -> None:
    async with await place.open():
        pass


def walk_both(folder: Path, *, num_walks: int, num_steps: int) -> Figure:
    begun, faults = time.monotonic(), list[str]()
    template = folder / "template"
    asyncio.run(_make(Place(template)))
    with running() as server:
        server.execute("CREATE DATABASE migrated")
        asyncio.run(_make(Place(folder / "postgresql", server.url("migrated"))))
        try:
            walk(template, server, num_walks=num_walks, num_steps=num_steps)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
    figure = f"{num_walks} x {num_steps} steps, the model's trace on both, {time.monotonic() - begun:.0f} s"
    return Figure("13", "Hypothesis walks SQLite and PostgreSQL side by side", figure, faults)
