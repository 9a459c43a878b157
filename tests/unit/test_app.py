"""The processes of a server, run in this one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest

import safelight.app
from safelight.config import Settings
from safelight.engine.host import EngineHost
from safelight.testing import FakeModel


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("role", ["api", "worker"])
async def test_a_process_that_has_started_collects_garbage_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(
        safelight.app,
        "engine_for",
        lambda settings, device: EngineHost(settings.engine, load=lambda folder: FakeModel()),
    )
    settings = Settings(data=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as door:
        work: Coroutine[object, object, None] = (
            safelight.app.serve_api(settings, door) if role == "api" else safelight.app.run_worker(settings, "cpu")
        )
        running = asyncio.create_task(work)
        async with asyncio.timeout(30):
            while not gc.isenabled():
                assert not running.done()
                await asyncio.sleep(0.02)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
