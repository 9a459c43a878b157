"""Pictures in a bucket: durable once answered, beside what is not ours, and clear about what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from safelight.config import load_settings
from safelight.errors import ConfigError, TryLater
from safelight.runs import OutputFormat
from safelight.store import Store
from safelight.store.image_bucket import ImageBucket
from safelight.store.images import thumbnail_of
from tests.s3 import S3Server

from .making import SUCCEEDED, Place, claim_one, draw, on_sqlite, submit


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
def bucket(s3: S3Server, url: str, tmp_path: Path) -> ImageBucket:
    return ImageBucket(url, endpoint=s3.endpoint, thumbnails=tmp_path / "thumbnails")


@on_sqlite
async def test_a_store_with_a_bucket_keeps_no_picture_on_its_disk(place: Place, s3: S3Server, url: str) -> None:
    async with await Store.open(place.data, images_url=url, images_endpoint=s3.endpoint) as store:
        run = await submit(store)
        claim = await claim_one(store)
        picture = await draw(store, claim)
        await store.runs.finish(claim, SUCCEEDED)
        await store.images.write(run.id, 0, 99, OutputFormat.PNG, b"late")
        assert s3.keys(url) == [f"of/tests/{run.id[:2]}/{run.id}/0-{fence}.png" for fence in (1, 99)]
        assert await store.sweep_images(older_than_seconds=-1.0) == 1
        assert await store.images.read(picture.path) == b"picture"
        await store.runs.delete(run.id)
        assert s3.keys(url) == []
        assert not (place.data / "images").exists()


async def test_what_is_no_picture_of_ours_is_never_swept(bucket: ImageBucket, s3: S3Server, url: str) -> None:
    for key in ("of/tests/ab/notes.txt", "of/tests/ab/ab-1/0-1.png.bak", "of/ab/ab-1/0-1.png", "ab/ab-1/0-1.png"):
        s3.client.put_object(Bucket=url.split("/")[2], Key=key, Body=b"not ours")
    assert await bucket.sweep(frozenset(), -1.0, shelf="ab") == 0
    assert len(s3.keys(url)) == 4


async def test_a_small_version_goes_although_its_picture_was_removed_elsewhere(
    bucket: ImageBucket, tmp_path: Path
) -> None:
    small, kept = (thumbnail_of(f"ab/ab-{run}/0-1.png", tmp_path / "thumbnails") for run in (1, 2))
    for file in (small, kept):
        file.parent.mkdir(parents=True)
        file.touch()
    assert await bucket.shelves() == ["ab"]
    assert await bucket.sweep({"ab/ab-2/0-1.png"}, -1.0, shelf="ab") == 0
    assert (small.exists(), kept.exists()) == (False, True)


async def test_a_bucket_that_is_missing_is_named_at_the_start(s3: S3Server, tmp_path: Path) -> None:
    bucket = ImageBucket("s3://nobody-made-it", endpoint=s3.endpoint, thumbnails=tmp_path)
    with pytest.raises(ConfigError, match=r"nobody-made-it of store\.images_url does not exist"):
        await bucket.check()


async def test_denied_access_says_what_and_to_whom_it_was_denied_but_no_credentials(
    bucket: ImageBucket, s3: S3Server
) -> None:
    s3.allow_strangers(False)
    try:
        with pytest.raises(ConfigError, match=r"denies PutObject .*; give the AWS credentials") as raised:
            await bucket.check()
    finally:
        s3.allow_strangers(True)
    assert "of-no-use" not in raised.value.message


async def test_without_credentials_the_variables_to_set_are_meant(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="set the AWS credentials"):
        await ImageBucket(url, endpoint=s3.endpoint, thumbnails=tmp_path).check()


async def test_a_bucket_that_is_away_while_runs_are_drawn_is_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = ImageBucket("s3://pictures", endpoint="http://127.0.0.1:9", thumbnails=tmp_path)
    with caplog.at_level(logging.ERROR), pytest.raises(TryLater) as raised:
        await away.write("ab-1", 0, 1, OutputFormat.PNG, b"light")
    assert "pictures" in raised.value.message and "bucket" not in raised.value.message
    assert "the bucket pictures of store.images_url cannot be reached" in caplog.records[-1].__dict__["reason"]
    with pytest.raises(TryLater):
        await away.read("ab/ab-1/0-1.png")
    await away.remove(["ab/ab-1/0-1.png"])
    with pytest.raises(ConfigError, match=r"store\.images_endpoint"):
        await away.check()


@pytest.mark.parametrize("wrong", ["pictures", "s3://", "s3://key:secret@pictures", "s3://UPPER/x", "https://pictures"])
def test_an_address_that_is_no_bucket_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.images_url") as raised:
        load_settings(environ={"SAFELIGHT_STORE__IMAGES_URL": wrong})
    assert "secret" not in raised.value.message


def test_an_endpoint_takes_no_credentials() -> None:
    with pytest.raises(ConfigError, match=r"store\.images_endpoint"):
        load_settings(environ={"SAFELIGHT_STORE__IMAGES_ENDPOINT": "https://key:secret@example.com"})
