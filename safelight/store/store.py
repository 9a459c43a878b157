"""The store: opens the data folder, brings the database up to date, and hands out the tables."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy.engine import Engine

from safelight.errors import ConfigError
from safelight.runs import Delivery
from safelight.store.checkpoints import CheckpointFolder
from safelight.store.database import Database, open_engine, open_wire
from safelight.store.deliveries import Deliveries
from safelight.store.deployments import DeploymentTable
from safelight.store.endpoints import WebhookEndpoints
from safelight.store.events import Events
from safelight.store.figures import Figures
from safelight.store.images import ImageFolder, Images, sync_folder
from safelight.store.keys import Keys
from safelight.store.ledger import Ledger
from safelight.store.measures import MeasureTable
from safelight.store.migrations import migrate
from safelight.store.notifications import Notifications, Wire
from safelight.store.previews import PreviewFolder
from safelight.store.project_secrets import ProjectSecrets
from safelight.store.retention import Retention
from safelight.store.runs import Runs
from safelight.store.search import Search
from safelight.store.sign_in import SignInLinks
from safelight.store.traced import TracedDatabase
from safelight.tracing import OFF, Tracing


class Store:
    """Everything that lasts. Any number of processes may have the same store open."""

    def __init__(
        self, data: Path, database: Database, notifications: Notifications, secret: bytes, kept_images: Images
    ) -> None:
        self._database = database
        self._secret = secret
        self.notifications = notifications
        self.images = kept_images
        self.checkpoints = CheckpointFolder(data / "checkpoints")
        self.previews = PreviewFolder(data / "previews")
        self.retention = Retention(database, self.images)
        self.runs = Runs(database, self.images)
        self.events = Events(database)
        self.deliveries = Deliveries(database)
        self.webhook_endpoints = WebhookEndpoints(database, secret)
        self.project_secrets = ProjectSecrets(database, secret)
        self.keys = Keys(database, secret)
        self.deployments = DeploymentTable(database)
        self.figures = Figures(database)
        self.ledger = Ledger(database)
        self.measures = MeasureTable(database)
        self.search = Search(database)
        self.sign_in_links = SignInLinks(data / "sign-in")

    @classmethod
    async def open(
        cls,
        data: Path,
        *,
        database_url: str | None = None,
        images_url: str | None = None,
        images_endpoint: str | None = None,
        tracing: Tracing = OFF,
    ) -> Self:
        """Open the store in `data`, made and migrated if need be. Raises ConfigError, StorageFull, TryLater."""
        engine, wire, secret = await asyncio.to_thread(_prepare, data, database_url)
        kept_images = open_images(data, images_url, images_endpoint)
        notifications = Notifications(wire)
        hint = notifications.tell
        database = TracedDatabase(engine, tracing, hint=hint) if tracing.is_on else Database(engine, hint=hint)
        notifications.start()
        return cls(data, database, notifications, secret, kept_images)

    async def release_memory(self) -> None:
        """Let go of what is only cached. What is asked next takes a little longer."""
        await self._database.close_idle()

    async def close(self) -> None:
        """Wait for the transactions under way, then let go of everything."""
        try:
            await self._database.close()
        finally:
            self.notifications.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def derive_secret(self, purpose: str) -> bytes:
        """A secret of this server for one purpose, the same after every start."""
        return hmac.new(self._secret, b"purpose:" + purpose.encode(), hashlib.sha256).digest()

    async def signing_secrets(self, delivery: Delivery) -> Sequence[str]:
        """What a delivery is signed with, newest first: its endpoint's secrets, or its project's. Raises NotFound.
        One transaction."""
        if delivery.endpoint_id is None:
            return await self.project_secrets.signing(delivery.project)
        return await self.webhook_endpoints.secrets(delivery.endpoint_id)

    async def sweep_images(self, *, older_than_seconds: float = 3600.0) -> int:
        """Remove image files that no row names. One transaction per shelf of the folder."""
        num_swept = 0
        for shelf in await self.images.shelves():
            known = await self.runs.image_paths(shelf)
            num_swept += await self.images.sweep(known, older_than_seconds, shelf=shelf)
        return num_swept

    async def find_orphans(self, *, older_than_seconds: float = 3600.0) -> list[int]:
        """The sizes of the files that `sweep_images` would remove. One transaction per shelf of the folder."""
        sizes: list[int] = []
        for shelf in await self.images.shelves():
            known = await self.runs.image_paths(shelf)
            sizes += await self.images.orphans(known, older_than_seconds, shelf=shelf)
        return sizes

    async def sweep_checkpoints(self, *, older_than_seconds: float = 600.0) -> int:
        """Remove checkpoints of runs that have ended or are gone. One transaction."""
        return await self.checkpoints.sweep(await self.runs.unfinished(), older_than_seconds)


def open_images(data: Path, url: str | None, endpoint: str | None) -> Images:
    """The bucket at `url`, or the folder in `data` where there is none. Nothing is asked of either.
    Raises ConfigError."""
    thumbnails = data / "thumbnails"
    if url is None:
        return ImageFolder(data / "images", thumbnails=thumbnails)
    try:
        from safelight.store.image_bucket import ImageBucket  # noqa: PLC0415 - only those who have a bucket have its client
    except ModuleNotFoundError as error:
        raise ConfigError("store.images_url needs boto3: pip install 'safelight[s3]'") from error
    return ImageBucket(url, endpoint=endpoint, thumbnails=thumbnails)


def _prepare(data: Path, database_url: str | None) -> tuple[Engine, Wire, bytes]:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(data):
            engine = open_engine(data, database_url)
            migrate(engine)
            secret = _server_secret(data)
        return engine, open_wire(engine, data), secret
    except OSError as error:
        raise ConfigError(f"the data folder {data} cannot be used: {error.strerror}") from error


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Holds off other processes that open the same folder, until this one has made or migrated what is in it."""
    with (data / "opening.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _server_secret(data: Path) -> bytes:
    path = data / "secret.key"
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        # Keys and signatures made with it must not outlive it.
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
    secret = path.read_bytes()
    if len(secret) != 32:
        raise ConfigError(f"{path} is damaged; restore it, or remove it and make all keys anew")
    return secret
