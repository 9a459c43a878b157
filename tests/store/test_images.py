"""What holds of pictures in a folder and of pictures in a bucket, and what holds of the folder alone."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from safelight.errors import NotFound, StorageFull, TryLater
from safelight.runs import OutputFormat
from safelight.store import ImageFolder, Images, Store
from safelight.store.image_bucket import ImageBucket
from safelight.store.images import path_of, thumbnail_of

from .making import SUCCEEDED, claim_one, draw, submit

RUN_ID = str(uuid.uuid4())


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder(tmp_path / "images")


@pytest.fixture(params=["folder", "bucket"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    thumbnails = tmp_path / "thumbnails"
    if request.param == "folder":
        return ImageFolder(tmp_path / "images", thumbnails=thumbnails)
    server = request.getfixturevalue("s3")
    return ImageBucket(server.make_bucket(), endpoint=server.endpoint, thumbnails=thumbnails)


async def test_a_written_picture_is_read_back(images: Images) -> None:
    stored = await images.write(RUN_ID, 3, 2, OutputFormat.WEBP, b"light")
    path, num_bytes, sha256 = stored
    assert path == f"{RUN_ID[:2]}/{RUN_ID}/3-2.webp"
    assert (num_bytes, sha256) == (5, hashlib.sha256(b"light").hexdigest())
    assert await images.read(path) == b"light"
    await images.remove([path, path])
    with pytest.raises(NotFound) as raised:
        await images.read(path)
    assert raised.value.code == "image_not_found"


async def test_only_a_picture_that_is_in_memory_is_read_on_the_loop(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light" * 100_000)
    threads = []
    to_thread = asyncio.to_thread

    async def note(*call: Any) -> Any:
        threads.append(call)
        return await to_thread(*call)

    monkeypatch.setattr(asyncio, "to_thread", note)
    assert await folder.read(stored.path) == b"light" * 100_000
    assert threads == []

    def wait_for_disk(*arguments: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "it is not in memory")

    monkeypatch.setattr(os, "preadv", wait_for_disk)
    assert await folder.read(stored.path) == b"light" * 100_000
    monkeypatch.setattr(os, "preadv", lambda *arguments: 7)
    assert await folder.read(stored.path) == b"light" * 100_000
    assert len(threads) == 2


async def test_a_picture_is_made_on_the_thread_that_writes_it(images: Images) -> None:
    makers: list[int] = []

    def make() -> bytes:
        makers.append(threading.get_ident())
        return b"light"

    stored = await images.write(RUN_ID, 0, 1, OutputFormat.PNG, make)
    assert (stored.num_bytes, await images.read(stored.path)) == (5, b"light")
    assert len(makers) == 1 and makers != [threading.get_ident()]


async def test_a_check_leaves_nothing_behind(images: Images) -> None:
    await images.check()
    assert await images.shelves() == []


async def test_the_sweep_takes_what_is_old_and_in_no_row_from_one_shelf(images: Images) -> None:
    known, unknown, elsewhere = [
        (await images.write(run_id, 0, 1, OutputFormat.PNG, b"light")).path for run_id in ("ab-1", "ab-2", "cd-1")
    ]
    assert await images.shelves() == ["ab", "cd"]
    assert await images.sweep({known}, shelf="ab") == 0
    assert await images.orphans({known}, -1.0, shelf="ab") == [5]
    assert await images.sweep({known}, -1.0, shelf="ab") == 1
    with pytest.raises(NotFound):
        await images.read(unknown)
    assert await images.read(known) == await images.read(elsewhere) == b"light"


async def test_small_versions_go_with_their_pictures(images: Images, tmp_path: Path) -> None:
    stored = await images.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    small = thumbnail_of(stored.path, tmp_path / "thumbnails")
    small.parent.mkdir(parents=True)
    small.touch()
    await images.remove([stored.path])
    assert not small.exists()


async def test_the_sweep_takes_small_versions_without_a_picture_and_half_made_ones(
    images: Images, tmp_path: Path
) -> None:
    kept = thumbnail_of((await images.write("ab-1", 0, 1, OutputFormat.PNG, b"light")).path, tmp_path / "thumbnails")
    late = thumbnail_of(path_of("cd-1", 0, 1, OutputFormat.PNG), tmp_path / "thumbnails")
    half_made = kept.with_name(f".{kept.name}.0123abcd")
    for small in (kept, half_made, late):
        small.parent.mkdir(parents=True, exist_ok=True)
        small.touch()
    known = {path_of("ab-1", 0, 1, OutputFormat.PNG)}
    for shelf in await images.shelves():
        assert await images.sweep(known, -1.0, shelf=shelf) == 0
    assert (kept.exists(), half_made.exists(), late.exists()) == (True, False, False)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced from now on: the folders and the endings of files."""
    noted: list[str] = []
    sync = os.fsync

    def noting_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        noted.append(path.relative_to(tmp_path).as_posix() if path.is_dir() else path.suffix)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting_sync)
    return noted


SHELF = f"images/{RUN_ID[:2]}"
PUT = [".png", f"{SHELF}/{RUN_ID}"]


async def test_everything_is_synced_before_a_picture_counts_as_written(folder: ImageFolder, steps: list[str]) -> None:
    await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert steps == [SHELF, "images", ".", *PUT]


async def test_what_was_prepared_and_synced_is_not_synced_again(folder: ImageFolder, steps: list[str]) -> None:
    await folder.prepare(RUN_ID)
    assert steps == [SHELF, "images", "."]
    await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    await folder.write(RUN_ID, 1, 1, OutputFormat.PNG, b"light")
    assert steps == [SHELF, "images", ".", *PUT, *PUT]


async def test_a_folder_that_somebody_else_made_or_that_is_gone_or_old_is_synced_again(
    folder: ImageFolder, tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHELF / RUN_ID).mkdir(parents=True)
    await folder.prepare(RUN_ID)
    stored = await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert steps == [SHELF, "images", ".", *PUT]
    await folder.remove([stored.path])
    await folder.prepare(RUN_ID)
    (tmp_path / SHELF / RUN_ID).rmdir()
    steps.clear()
    await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert steps == [SHELF, *PUT]
    monkeypatch.setattr("safelight.store.images.PREPARED_SECONDS", 0.0)
    steps.clear()
    await folder.write(RUN_ID, 1, 1, OutputFormat.PNG, b"light")
    assert steps == [SHELF, *PUT]


async def test_a_folder_whose_pictures_never_came_is_swept_days_later(folder: ImageFolder, tmp_path: Path) -> None:
    await folder.prepare(RUN_ID)
    empty = tmp_path / SHELF / RUN_ID
    await folder.sweep(frozenset(), 3600.0, shelf=RUN_ID[:2])
    assert empty.is_dir()
    old = time.time() - 100_000.0
    os.utime(empty, (old, old))
    await folder.sweep(frozenset(), 3600.0, shelf=RUN_ID[:2])
    assert not empty.exists()


async def test_the_sweep_tries_to_remove_no_folder_that_has_pictures(
    folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    old = time.time() - 100_000.0
    os.utime(tmp_path / SHELF / RUN_ID, (old, old))
    tried: list[str] = []
    monkeypatch.setattr(os, "rmdir", tried.append)
    await folder.sweep({stored.path}, 3600.0, shelf=RUN_ID[:2])
    assert tried == []


async def test_what_cannot_be_prepared_is_said_by_the_write(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    await folder.prepare(RUN_ID)
    with pytest.raises(TryLater, match="Not a directory"):
        await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.key",
        "aa/../../secret.key",
        "/etc/passwd",
        "",
        "aa/b/0-1.png",
        "aa/bb/..",
        "aa/bb/0-1.png\n",
        "aa/bb/0-1.png\0",
    ],
)
async def test_no_path_leads_out(images: Images, path: str) -> None:
    with pytest.raises(NotFound):
        await images.read(path)


async def test_names_of_pictures_do_not_fill_the_table_of_interned_strings(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    interned: list[str] = []
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)
    await folder.prepare(RUN_ID)
    stored = await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert await folder.read(stored.path) == b"light"
    assert await folder.sweep({stored.path}, -1.0, shelf=RUN_ID[:2]) == 0
    assert await folder.orphans(frozenset(), -1.0, shelf=RUN_ID[:2]) == [5]
    await folder.remove([stored.path])
    assert RUN_ID not in interned


def test_what_a_crash_leaves_of_a_picture_is_swept(folder: ImageFolder, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os.fsync = _die_at_a_file  # type: ignore[assignment]
        folder._write(f"{RUN_ID[:2]}/{RUN_ID}/0-1.png", b"light")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    [left] = (path for path in (tmp_path / "images").rglob("*") if path.is_file())
    assert asyncio.run(folder.sweep(frozenset(), 3600.0, shelf=RUN_ID[:2])) == 0
    assert asyncio.run(folder.sweep(frozenset(), -1.0, shelf=RUN_ID[:2])) == 1
    assert not left.parent.exists()


async def test_what_a_forgotten_claim_left_gives_way(folder: ImageFolder, tmp_path: Path) -> None:
    left = tmp_path / SHELF / RUN_ID / "0-1.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"more than the light that is written later")
    with left.open("rb+") as still_writing:
        stored = await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
        still_writing.write(b"dark")
    assert await folder.read(stored.path) == b"light"


def _die_at_a_file(descriptor: int) -> None:
    if not _is_folder(descriptor):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_folder(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_said_and_leaves_nothing(
    folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        if not _is_folder(descriptor):
            raise OSError(number, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == []


async def test_a_disk_that_takes_nothing_is_said_and_may_take_it_later(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(TryLater, match="Input/output error"):
            await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")
    assert "a picture cannot be written" in caplog.text
    assert await folder.read((await folder.write(RUN_ID, 0, 1, OutputFormat.PNG, b"light")).path) == b"light"


async def test_a_file_that_cannot_be_removed_keeps_no_other_from_going(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, free = [(await folder.write(RUN_ID, index, 1, OutputFormat.PNG, b"light")).path for index in range(2)]
    unlink = os.unlink

    def refuse(file: str) -> None:
        if file.endswith(stuck):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        await folder.remove([stuck, free])
    assert stuck in caplog.records[0].path  # type: ignore[attr-defined]
    assert await folder.read(stuck) == b"light"
    with pytest.raises(NotFound):
        await folder.read(free)


async def test_the_sweep_takes_old_files_that_no_row_names(store: Store, data: Path) -> None:
    await submit(store)
    claim = await claim_one(store)
    named = await draw(store, claim)
    unnamed = await store.images.write(claim.run.id, 0, 99, OutputFormat.PNG, b"late")
    alone = await store.images.write(str(uuid.uuid4()), 0, 1, OutputFormat.PNG, b"lost")
    assert await store.sweep_images() == 0
    old = time.time() - 7200
    for path in (named.path, unnamed.path, alone.path):
        os.utime(data / "images" / path, (old, old))
    assert await store.sweep_images() == 2
    assert await store.images.read(named.path) == b"picture"
    await store.runs.finish(claim, SUCCEEDED)


async def test_pictures_written_at_once_do_not_disturb_each_other(images: Images) -> None:
    stored = await asyncio.gather(
        *(images.write(RUN_ID, index, 1, OutputFormat.PNG, bytes([index]) * 1000) for index in range(8))
    )
    assert [await images.read(one.path) for one in stored] == [bytes([index]) * 1000 for index in range(8)]
