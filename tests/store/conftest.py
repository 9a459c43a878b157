"""A store in a fresh folder for each test, copied from one that was migrated once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from safelight.store import Store


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrated") / "data"

    async def make() -> None:
        async with await Store.open(folder):
            pass

    asyncio.run(make())
    return folder


@pytest.fixture
def data(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(migrated, tmp_path / "data"))


@pytest.fixture
async def store(data: Path) -> AsyncIterator[Store]:
    async with await Store.open(data) as store:
        yield store


@pytest.fixture
async def neighbour(data: Path, store: Store) -> AsyncIterator[Store]:
    """A second store over the same file."""
    async with await Store.open(data) as neighbour:
        yield neighbour
