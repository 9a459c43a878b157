"""Pictures: written durably before a row names them, read and removed by that name, swept when no row does.

They are files of a folder (here) or objects of a bucket (`image_bucket`).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from safelight.errors import ConfigError, NotFound, StorageFull, TryLater
from safelight.runs import OutputFormat

log = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{2,64}")
_PATH = re.compile(r"[0-9A-Za-z_-]{2}/[0-9A-Za-z_-]{2,64}/\d+-\d+\.[a-z]+")

Content = bytes | Callable[[], bytes]
"""Of a picture file; or what makes it, which is called on the thread that writes, off the event loop."""


PREPARED_SECONDS = 600.0
"""How long a folder that was made for a run counts as synced: less than whatever is swept is old."""

MAX_PREPARED = 1000

SHELF_CHARS = 2
"""Of a run's id: what begins alike lies on one shelf."""

LONGEST_DRAWING_SECONDS = 86_400.0
"""For so long a folder may wait, empty, for the first picture of its run."""


class StoredImage(NamedTuple):
    """Where a picture was put, relative to the folder or prefix, and what an ImageRecord says of it."""

    path: str
    num_bytes: int
    sha256: str


class Images(Protocol):
    """Where pictures lie: under `<run_id[:2]>/<run_id>/<index>-<fence>.<format>`, on shelves of a run id's
    first two characters."""

    async def check(self) -> None:
        """Try whether pictures can be kept there. Raises ConfigError with the remedy."""

    async def write(
        self, run_id: str, index: int, fence: int, output_format: OutputFormat, content: Content
    ) -> StoredImage:
        """Write a picture so that it survives power loss once this returns. Raises StorageFull, TryLater."""

    async def prepare(self, run_id: str) -> None:
        """Do what `write` can be spared for the pictures of a run, while they are drawn. Never raises: `write` does
        what was left undone."""

    async def read(self, path: str) -> bytes:
        """The bytes of a picture. Raises NotFound, TryLater."""

    async def remove(self, paths: Iterable[str]) -> None:
        """Remove pictures with their small versions; what is gone already is no error."""

    async def sweep(self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str) -> int:
        """Remove what is in no row and no longer young, on one shelf; how many that were. Raises TryLater."""

    async def orphans(
        self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str
    ) -> list[int]:
        """The sizes, in bytes, of what `sweep` would remove. Raises TryLater."""

    async def shelves(self) -> list[str]:
        """The shelves that `sweep` can be asked for one by one. Raises TryLater."""


class ImageFolder:
    """Images in a folder. The disk work is done off the event loop."""

    def __init__(self, folder: Path, *, thumbnails: Path | None = None) -> None:
        """`thumbnails` is where small versions may lie, under the same names but their endings; they go with
        their pictures."""
        self._folder = folder
        # A run's own files go by strings: pathlib interns every part of every path, and CPython's table of interned
        # strings keeps a slot for each that was ever in it, until it is full and made anew.
        self._root = str(folder)
        self._thumbnails = None if thumbnails is None else ImageFolder(thumbnails)
        self._lasting_shelves: set[str] = set()
        self._prepared: dict[str, float] = {}
        self._hashing = ThreadPoolExecutor(1, "sha256")

    async def check(self) -> None:
        await asyncio.to_thread(self._check)

    async def write(
        self, run_id: str, index: int, fence: int, output_format: OutputFormat, content: Content
    ) -> StoredImage:
        path = path_of(run_id, index, fence, output_format)
        try:
            return await asyncio.to_thread(self._write, path, content)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = "the disk of the data folder is full; free some space"
                raise StorageFull(message, retry_after_seconds=30.0) from error
            log.exception("a picture cannot be written")
            message = f"the pictures cannot be written ({error.strerror}); the server's log says more"
            raise TryLater(message, retry_after_seconds=30.0) from error

    async def prepare(self, run_id: str) -> None:
        folder = f"{self._root}/{shelf_of(run_id)}/{run_id}"
        with suppress(OSError):
            if await asyncio.to_thread(self._make_new, folder):
                self._prepared[folder] = time.monotonic()
        while len(self._prepared) > MAX_PREPARED:
            del self._prepared[next(iter(self._prepared))]

    async def read(self, path: str) -> bytes:
        file = self._resolve(path)
        try:
            # Most are asked for just after they were written, and the way to a thread takes longer than reading those.
            cached = _read_cached(file)
            return cached if cached is not None else await asyncio.to_thread(_read, file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise no_such_image() from error

    async def remove(self, paths: Iterable[str]) -> None:
        """Folders that this empties go too."""
        await asyncio.to_thread(self._remove, [_checked(path) for path in paths])

    async def sweep(self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str) -> int:
        return await asyncio.to_thread(self._sweep, known_paths, older_than_seconds, shelf)

    async def orphans(
        self, known_paths: Collection[str], older_than_seconds: float = 3600.0, *, shelf: str
    ) -> list[int]:
        return await asyncio.to_thread(self._orphan_sizes, known_paths, older_than_seconds, shelf)

    async def shelves(self) -> list[str]:
        return await asyncio.to_thread(self._shelves)

    def _shelves(self) -> list[str]:
        own = {shelf.name for shelf in _entries(self._root) if len(shelf.name) == SHELF_CHARS}
        return sorted(own if self._thumbnails is None else own.union(self._thumbnails._shelves()))

    def _check(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder {self._folder} cannot be made: {error.strerror}") from error

    def _resolve(self, path: str) -> str:
        return f"{self._root}/{_checked(path)}"

    def _write(self, path: str, content: Content) -> StoredImage:
        data = bytes_of(content)
        file = f"{self._root}/{path}"
        folder = os.path.dirname(file)
        self._make_parents(folder)
        # What is there already was left by a claim that the database has forgotten: power was cut, or it was restored.
        with suppress(FileNotFoundError):
            os.unlink(file)
        # Under its own name at once: nobody looks there before a row names it, and none does before it is whole.
        with open(file, "xb") as opened:
            try:
                opened.write(data)
                opened.flush()
                # The disk takes several times longer, and a processor is free meanwhile.
                digest = self._hashing.submit(_sha256, data)
                os.fsync(opened.fileno())
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(file)
                raise
        sync_folder(folder)
        return StoredImage(path, len(data), digest.result())

    def _make_new(self, folder: str) -> bool:
        """Whether it was not there before."""
        if os.path.isdir(folder):
            return False
        self._make_parents(folder)
        return True

    def _is_lasting(self, folder: str) -> bool:
        """It was made here and synced, and is too young for any sweep."""
        prepared_at = self._prepared.get(folder)
        return prepared_at is not None and time.monotonic() - prepared_at < PREPARED_SECONDS and os.path.isdir(folder)

    def _make_parents(self, folder: str) -> None:
        if self._is_lasting(folder):
            return
        os.makedirs(folder, mode=0o700, exist_ok=True)
        shelf = os.path.dirname(folder)
        # Another process may have made these and not yet synced them, so "it was there" is not enough.
        sync_folder(shelf)
        if shelf not in self._lasting_shelves:
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
            self._lasting_shelves.add(shelf)

    def _remove(self, paths: Collection[str]) -> None:
        if self._thumbnails is not None:
            self._thumbnails._remove([small_name(path) for path in paths])
        files = [f"{self._root}/{path}" for path in paths]
        for file in files:
            try:
                os.unlink(file)
            except FileNotFoundError:
                pass
            except OSError as error:
                # Whatever it is comes to a sweep again; the others go meanwhile.
                log.error("a picture cannot be removed", extra={"path": file, "reason": str(error)})
        for folder in {os.path.dirname(file) for file in files}:
            with suppress(OSError):
                os.rmdir(folder)

    def _sweep(self, known_paths: Collection[str], older_than_seconds: float, shelf: str) -> int:
        orphans = self._orphans(known_paths, older_than_seconds, shelf)
        self._remove([path for path, _ in orphans])
        if self._thumbnails is not None:
            # One may have been made while its picture was removed, or have been left half-made.
            known_small = {small_name(path) for path in known_paths}
            self._thumbnails._sweep(known_small, older_than_seconds, shelf)
        full = {run_of(path) for path in known_paths}
        self._remove_empty(shelf, full, time.time() - older_than_seconds - LONGEST_DRAWING_SECONDS)
        return len(orphans)

    def _remove_empty(self, shelf: str, full: Collection[str], oldest_kept: float) -> None:
        """The folders that were prepared for pictures which never came. The `full` ones, nearly all, are not tried."""
        for folder in _entries(f"{self._root}/{shelf}"):
            with suppress(OSError):
                if folder.name not in full and folder.stat().st_mtime < oldest_kept:
                    os.rmdir(folder.path)

    def _orphan_sizes(self, known_paths: Collection[str], older_than_seconds: float, shelf: str) -> list[int]:
        return [num_bytes for _, num_bytes in self._orphans(known_paths, older_than_seconds, shelf)]

    def _orphans(self, known_paths: Collection[str], older_than_seconds: float, shelf: str) -> list[tuple[str, int]]:
        """What no path names and is no longer young, with its bytes."""
        oldest_kept, found = time.time() - older_than_seconds, []
        for folder in _entries(f"{self._root}/{shelf}"):
            for file in _entries(folder.path):
                path = f"{shelf}/{folder.name}/{file.name}"
                with suppress(FileNotFoundError):
                    if path not in known_paths and file.stat().st_mtime < oldest_kept:
                        found.append((path, file.stat().st_size))
        return found


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing where that is gone, or no folder."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        yield from found


def _read(file: str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


def _read_cached(file: str) -> bytes | None:
    """A file that the system has in memory; None where a disk or another machine would have to be waited for, and where
    the system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    descriptor = os.open(file, os.O_RDONLY)
    try:
        content = bytearray(os.fstat(descriptor).st_size)
        is_whole = os.preadv(descriptor, [content], 0, os.RWF_NOWAIT) == len(content)
        return bytes(content) if is_whole else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def sync_folder(folder: Path | str) -> None:
    """Make the names in a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def thumbnail_of(path: str, folder: Path) -> Path:
    """Where in `folder` the small version of the picture at `path` is, once somebody made one."""
    return folder / small_name(path)


def small_name(path: str) -> str:
    """Under which name among the small versions that of the picture at `path` lies."""
    return f"{path.rpartition('.')[0]}.webp"


def path_of(run_id: str, index: int, fence: int, output_format: OutputFormat) -> str:
    """Where one picture of a run lies, as drawn under one claim."""
    assert _RUN_ID.fullmatch(run_id), "run ids are made by the server"
    return f"{shelf_of(run_id)}/{run_id}/{index}-{fence}.{output_format.value}"


def shelf_of(run_id: str) -> str:
    """The shelf that the pictures of a run lie on."""
    return run_id[:SHELF_CHARS]


def run_of(path: str) -> str:
    """The id of the run whose picture lies there."""
    return path.split("/")[1]


def bytes_of(content: Content) -> bytes:
    """A picture's bytes, made now if they are not there yet."""
    return content() if callable(content) else content


def stored_image(path: str, data: bytes) -> StoredImage:
    """What is to be known of a picture that was put at `path`."""
    return StoredImage(path, len(data), _sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_path(path: str) -> bool:
    """Whether a picture can lie there, and nothing else."""
    return _PATH.fullmatch(path) is not None


def _checked(path: str) -> str:
    if not is_path(path):
        raise no_such_image()
    return path


def no_such_image() -> NotFound:
    return NotFound("there is no such image; the run may have expired", code="image_not_found")
