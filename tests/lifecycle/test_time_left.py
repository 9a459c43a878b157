"""What a worker reports of the time left."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.store import Store
from safelight.worker.held import Held
from tests.store.making import claim_one, submit


async def test_the_time_left_is_less_by_what_passed_since_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Store.open(tmp_path / "data") as store:
        await submit(store)
        held = Held(await claim_one(store))
    now = 100.0
    monkeypatch.setattr("safelight.worker.held.time.monotonic", lambda: now)
    assert held.progress().eta_seconds is None
    held.foresee(5.0)
    now += 2.0
    assert held.progress().eta_seconds == pytest.approx(3.0)
    now += 9.0
    assert held.progress().eta_seconds == 0.0
