"""A house in a fresh folder for each test."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from safelight.api import Service, create_app
from safelight.config import ServerSettings
from safelight.deployments import Deployment
from safelight.keys import Scope
from safelight.store import Store

from .house import FakeWorker, House, check_webhook, open_client

MakeHouse = Callable[..., contextlib.AbstractAsyncContextManager[House]]


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder with one deployment and one key, and the secret of that key."""
    folder = tmp_path_factory.mktemp("furnished") / "data"

    async def make() -> str:
        async with await Store.open(folder) as store:
            await store.deployments.deploy(Deployment(name="pinhole", version=0, model="pinhole"))
            _, secret = await store.keys.create("all", scopes=frozenset({Scope.PREDICT, Scope.READ}))
            return secret

    return folder, asyncio.run(make())


@pytest.fixture
async def store(furnished: tuple[Path, str], tmp_path: Path) -> AsyncIterator[Store]:
    shutil.copytree(furnished[0], tmp_path / "data")
    async with await Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(port=0, sync_timeout_seconds=15, receive_timeout_seconds=1)


@pytest.fixture
def make_house(store: Store, furnished: tuple[Path, str]) -> MakeHouse:
    """Builds a house with settings of one's own."""

    @contextlib.asynccontextmanager
    async def make(settings: ServerSettings) -> AsyncIterator[House]:
        service = Service(store, settings, check_webhook=check_webhook)
        app = create_app(service, settings)
        key = furnished[1]
        async with open_client(app, key) as client:
            yield House(store, service, app, client, key, settings, FakeWorker(store))

    return make


@pytest.fixture
async def house(make_house: MakeHouse, settings: ServerSettings) -> AsyncIterator[House]:
    async with make_house(settings) as made:
        yield made
