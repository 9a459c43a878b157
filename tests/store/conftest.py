"""A store for each test, over SQLite and over PostgreSQL: a fresh folder, and a copy of a database migrated once.

Tests take `store` (and `neighbour`), or `place` where they open it themselves; a test or file of one database only says
`@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from safelight.store import Store
from tests import s3 as s3_server
from tests.postgres import MISSING, Postgres, find_programs, running

from .making import Place

KINDS = ("sqlite", "postgresql")
numbers = itertools.count()


async def make(place: Place) -> None:
    async with await place.open():
        pass


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if find_programs() is None:
        pytest.skip(MISSING)
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    with s3_server.running() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrated") / "data"
    asyncio.run(make(Place(folder)))
    return folder


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Postgres:
    """A server with a database `migrated` to copy."""
    postgres.execute("CREATE DATABASE migrated")
    asyncio.run(make(Place(tmp_path_factory.mktemp("migrated-pg"), postgres.url("migrated"))))
    return postgres


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if kind == "sqlite":
        yield Place(Path(shutil.copytree(request.getfixturevalue("migrated"), tmp_path / "data")))
        return
    server: Postgres = request.getfixturevalue("migrated_postgres")
    with copied(server) as url:
        yield Place(tmp_path / "data", url)


@contextlib.contextmanager
def copied(server: Postgres, template: str = "migrated") -> Iterator[str]:
    """The URL of a copy of a database, by default of the migrated one."""
    name = f"test_{next(numbers)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.url(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where no store was opened yet."""
    if kind == "sqlite":
        yield Place(tmp_path / "empty")
        return
    server: Postgres = request.getfixturevalue("postgres")
    with copied(server, template="template0") as url:
        yield Place(tmp_path / "empty", url)


@pytest.fixture
def data(place: Place) -> Path:
    return place.data


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with await place.open() as store:
        yield store


@pytest.fixture
async def neighbour(place: Place, store: Store) -> AsyncIterator[Store]:
    """A second store over the same database."""
    async with await place.open() as neighbour:
        yield neighbour
