"""Pictures as objects of an S3-compatible bucket, under the names they would have in a folder. boto3 is
imported here only."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from safelight.errors import ConfigError, StorageFull, TryLater
from safelight.runs import OutputFormat
from safelight.store.images import (
    Content,
    ImageFolder,
    StoredImage,
    bytes_of,
    is_path,
    no_such_image,
    path_of,
    small_name,
    stored_image,
)

log = logging.getLogger("safelight.store")

T = TypeVar("T")

NUM_CONNECTIONS = 10
CONNECT_SECONDS = 3.0
READ_SECONDS = 20.0
NUM_TRIES = 3
RETRY_SECONDS = 10.0


class _Object(NamedTuple):
    path: str
    num_bytes: int
    written_at: float


class ImageBucket:
    """Images in a bucket. A picture is durable when its PUT is answered. The work is done on threads of its own.

    Raises TryLater whenever the bucket cannot be used, for whatever reason: the log has it, callers need not know.
    """

    def __init__(self, url: str, *, endpoint: str | None, thumbnails: Path) -> None:
        """`url` is s3://bucket/prefix. Credentials and region are looked for where AWS's own tools do.

        Small versions lie in the folder `thumbnails` of this machine, under the names of their pictures
        but the endings.
        """
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._where = f"the bucket {self._bucket} of store.images_url"
        self._thumbnails = ImageFolder(thumbnails)
        self._threads = ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="bucket")
        self._client = _connect(endpoint)

    async def check(self) -> None:
        """Writes, lists, reads and removes a small object: each of these may be forbidden alone."""
        try:
            await self._on_thread(self._try_all)
        except (BotoCoreError, ClientError) as error:
            raise ConfigError(self._explain(error)) from error

    async def write(
        self, run_id: str, index: int, fence: int, output_format: OutputFormat, content: Content
    ) -> StoredImage:
        return await self._do(self._write, path_of(run_id, index, fence, output_format), content)

    async def prepare(self, run_id: str) -> None:
        """A bucket has no folders."""

    async def read(self, path: str) -> bytes:
        if not is_path(path):
            raise no_such_image()
        return await self._do(self._get, path)

    async def remove(self, paths: Iterable[str]) -> None:
        """What cannot be removed now is no longer named by a row, and is taken by a later sweep."""
        paths = list(paths)
        await self._thumbnails.remove(map(small_name, paths))
        try:
            await self._do(self._delete, paths)
        except TryLater:
            log.warning("pictures could not be removed; the sweep takes them", extra={"pictures": len(paths)})

    async def sweep(self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str) -> int:
        """Small versions whose picture was removed from another machine go too, uncounted."""
        known_small = {small_name(path) for path in known_paths}
        await self._thumbnails.sweep(known_small, older_than_seconds, shelf=shelf)
        found = await self._do(self._orphans, known_paths, older_than_seconds, shelf)
        await self._do(self._delete, [orphan.path for orphan in found])
        return len(found)

    async def orphans(
        self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str
    ) -> list[int]:
        found = await self._do(self._orphans, known_paths, older_than_seconds, shelf)
        return [orphan.num_bytes for orphan in found]

    async def shelves(self) -> list[str]:
        return sorted({*await self._do(self._shelves), *await self._thumbnails.shelves()})

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._on_thread(work, *arguments)
        except (BotoCoreError, ClientError) as error:
            log.error("the bucket cannot be used", extra={"reason": self._explain(error)})
            if _status(error) == HTTPStatus.INSUFFICIENT_STORAGE:
                raise StorageFull(
                    "the bucket of the pictures is full; free some space", retry_after_seconds=30.0
                ) from error
            message = "the pictures cannot be reached; send the same again in a moment"
            raise TryLater(message, retry_after_seconds=RETRY_SECONDS) from error

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))

    def _try_all(self) -> None:
        name = f"check-{secrets.token_hex(8)}"
        self._put(name, b"safelight")
        list(self._list(name))
        self._get(name)
        self._delete([name])

    def _write(self, path: str, content: Content) -> StoredImage:
        data = bytes_of(content)
        self._put(path, data)
        return stored_image(path, data)

    def _put(self, path: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + path, Body=data)

    def _get(self, path: str) -> bytes:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)
            content: bytes = answer["Body"].read()
        except ClientError as error:
            if _code(error) == "NoSuchKey":
                raise no_such_image() from error
            raise
        return content

    def _delete(self, paths: list[str]) -> None:
        # One by one: not every server that speaks S3 knows the request for many.
        for path in paths:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + path)

    def _shelves(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        found = (shelf["Prefix"] for page in pages for shelf in page.get("CommonPrefixes", ()))
        names = (prefix.removeprefix(self._prefix).rstrip("/") for prefix in found)
        return [name for name in names if len(name) == 2]

    def _orphans(self, known_paths: Collection[str], older_than_seconds: float, shelf: str) -> list[_Object]:
        oldest_kept = time.time() - older_than_seconds
        return [
            each
            for each in self._list(f"{shelf}/")
            if each.written_at < oldest_kept and is_path(each.path) and each.path not in known_paths
        ]

    def _list(self, start: str) -> Iterator[_Object]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + start)
        for page in pages:
            for each in page.get("Contents", ()):
                path = each["Key"].removeprefix(self._prefix)
                yield _Object(path, each["Size"], each["LastModified"].timestamp())

    def _explain(self, error: BotoCoreError | ClientError) -> str:
        """What is wrong with the bucket, and the remedy. Holds no credentials."""
        if isinstance(error, ConnectionError | HTTPClientError):
            return (
                f"{self._where} cannot be reached ({type(error).__name__}); see store.images_endpoint and the network"
            )
        if not isinstance(error, ClientError):
            return f"{self._where} cannot be used: {error}; set the AWS credentials and region in the environment"
        if _code(error) == "NoSuchBucket":
            return f"{self._where} does not exist; make it, or name another one"
        if _status(error) == HTTPStatus.FORBIDDEN:
            operation = error.operation_name
            return (
                f"{self._where} denies {operation} ({_code(error)}); give the AWS credentials in the environment"
                " the rights to list the bucket and to get, put and delete its objects"
            )
        return f"{self._where} answered {_code(error)} to {error.operation_name}"


def _connect(endpoint: str | None) -> Any:
    """A client that any number of threads may use."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=NUM_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": NUM_TRIES},
        # The body's digest is in the signature, which every server checks; newer checksums not all of them know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, "addressing_style": "auto" if endpoint is None else "path"},
    )
    try:
        return Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the S3 client cannot be set up from the AWS environment: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: BotoCoreError | ClientError) -> int:
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
