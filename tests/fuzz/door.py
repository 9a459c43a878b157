"""The door as the server puts it together, in this process: store, checks of webhooks, dashboard; and the worker behind
it, with FakeModel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from safelight.api import Service, build_desk, create_app, make_server
from safelight.api.metering import Meter
from safelight.app import open_store
from safelight.config import ServerSettings, Settings
from safelight.deployments import Deployment
from safelight.engine.host import EngineHost
from safelight.keys import Scope
from safelight.store import Store
from safelight.testing import FakeModel
from safelight.webhooks.targets import TargetPolicy
from safelight.worker import Worker


@dataclass(frozen=True, slots=True)
class Door:
    """`key` may do everything."""

    settings: Settings
    store: Store
    deployments: Sequence[Deployment]
    service: Service
    app: FastAPI
    key: str


def settings_for(folder: Path) -> Settings:
    """A queue that is never full, and no weights but those that ship."""
    server = ServerSettings(port=0, sync_timeout_seconds=30, max_queued_runs=100_000)
    return Settings(data=folder / "data", hf_home=folder / "hub", server=server)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, deployments: Sequence[Deployment], *, meter: Meter | None = None
) -> AsyncIterator[Door]:
    async with await open_store(settings) as store:
        for deployment in deployments:
            await store.deployments.deploy(deployment)
        _, key = await store.keys.create("all", scopes=frozenset({Scope.ADMIN}))
        policy = TargetPolicy(settings.webhooks.allowed_networks)
        service = Service(store, settings.server, check_webhook=policy.check_url)
        app = create_app(service, settings.server, desk=build_desk(store, service, settings), meter=meter)
        yield Door(settings, store, deployments, service, app, key)


@contextlib.asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[FakeModel]:
    """A worker over a store of its own; every model it loads is the one that this gives."""
    model = FakeModel()
    async with await open_store(settings) as store:
        engine = EngineHost(settings.engine, load=lambda folder: model)
        worker = Worker(store, engine, settings.worker, worker_id="one", find_weights=lambda *names, **more: Path())
        task = asyncio.create_task(worker.run())
        try:
            yield model
        finally:
            worker.stop()
            await task
            await engine.close()


@contextlib.asynccontextmanager
async def serving(door: Door) -> AsyncIterator[str]:
    """The door on loopback; its address."""
    server = make_server(door.app, door.service, door.settings.server)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)
