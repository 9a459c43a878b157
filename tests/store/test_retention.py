"""What expires, in which order, and what never does."""

from __future__ import annotations

import uuid

import pytest

from safelight.errors import NotFound
from safelight.runs import (
    DeliveryAttempt,
    ImageRecord,
    InputName,
    Outcome,
    OutputFormat,
    Run,
    RunError,
    RunInput,
    RunStatus,
)
from safelight.store import Store
from safelight.store.retention import Expiry

from .making import HOOK, claim_one, draw, finish, submit

FAILED = Outcome(status=RunStatus.FAILED, run_time_ms=1.0, error=RunError("out_of_memory", "smaller"))


async def drawn(store: Store, num_bytes: int, **given: object) -> tuple[Run, ImageRecord]:
    """A run that has succeeded with one picture of so many bytes."""
    await submit(store, **given)
    claim = await claim_one(store)
    picture = await draw(store, claim, content=b"x" * num_bytes)
    return await finish(store, claim), picture


async def settle(store: Store) -> None:
    """Everything that is due arrives."""
    for delivery in await store.deliveries.claim_due(limit=100, lease_seconds=60):
        attempt = DeliveryAttempt(number=1, at=1.0, duration_ms=2.0, status_code=200)
        await store.deliveries.record(
            delivery, attempt, retry_seconds=(0,), delivered=True, give_up=False, retry_after_seconds=None
        )


async def test_images_of_the_oldest_ended_runs_go_until_the_rest_fits(store: Store) -> None:
    (first, oldest), (second, older), (third, newest) = [await drawn(store, 100) for _ in range(3)]
    assert await store.retention.expire_images(max_bytes=300) == Expiry()
    assert await store.retention.expire_images(max_bytes=150) == Expiry(num_runs_without_images=2, image_bytes=200)
    for picture in (oldest, older):
        with pytest.raises(NotFound):
            await store.images.read(picture.path)
    assert await store.images.read(newest.path) == b"x" * 100
    for run in (first, second):
        seen = await store.runs.get(run.id)
        assert seen.images == () and seen.images_expired_at is not None and seen.params == run.params
    assert (await store.runs.get(third.id)).images_expired_at is None
    assert await store.retention.expire_images(max_bytes=150) == Expiry()


async def test_no_more_images_go_than_must(store: Store) -> None:
    for _ in range(4):
        await drawn(store, 100)
    assert (await store.retention.expire_images(max_bytes=399)).num_runs_without_images == 1


async def test_images_that_are_still_to_be_told_of_or_drawn_stay_whatever_the_budget(store: Store) -> None:
    _, untold = await drawn(store, 100, webhook_endpoint=HOOK)
    await submit(store)
    claim = await claim_one(store)
    unended = await draw(store, claim, content=b"y" * 50)
    _, plain = await drawn(store, 25)
    expiry = await store.retention.expire_images(max_bytes=0)
    assert expiry == Expiry(num_runs_without_images=1, image_bytes=25, bytes_over_budget=150)
    for picture in (untold, unended):
        assert await store.images.read(picture.path)
    with pytest.raises(NotFound):
        await store.images.read(plain.path)
    await settle(store)
    assert (await store.retention.expire_images(max_bytes=0)).image_bytes == 100


async def test_what_runs_began_from_counts_and_goes_though_they_failed(store: Store) -> None:
    run_id = str(uuid.uuid4())
    kept = await store.images.write(run_id, 0, 0, OutputFormat.PNG, b"x" * 100)
    begun_from = RunInput(name=InputName.INIT_IMAGE, path=kept.path, num_bytes=kept.num_bytes, sha256=kept.sha256)
    await submit(store, id=run_id, inputs=(begun_from,))
    assert (await store.retention.expire_images(max_bytes=50)).bytes_over_budget == 50, "it is still to be drawn"
    await finish(store, await claim_one(store), FAILED)
    _, newer = await drawn(store, 50)
    assert await store.retention.expire_images(max_bytes=50) == Expiry(num_runs_without_images=1, image_bytes=100)
    with pytest.raises(NotFound):
        await store.images.read(kept.path)
    assert await store.images.read(newer.path)


async def test_a_budget_is_kept_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.retention.PRUNE_BATCH", 2)
    for _ in range(5):
        await drawn(store, 10)
    assert await store.retention.expire_images(max_bytes=0) == Expiry(num_runs_without_images=5, image_bytes=50)


async def test_a_file_whose_image_has_expired_is_an_orphan(store: Store) -> None:
    run, picture = await drawn(store, 10)
    shelf = run.id[:2]
    assert picture.path in await store.runs.image_paths(shelf)
    assert await store.find_orphans(older_than_seconds=-1) == []
    await store.retention.expire_images(max_bytes=0)
    assert picture.path not in await store.runs.image_paths(shelf)
    await store.images.write(run.id, 7, 1, run.params.output_format, b"lost")
    assert await store.find_orphans(older_than_seconds=-1) == [4]
    assert await store.sweep_images(older_than_seconds=-1) == 1


async def test_the_log_outlives_a_deleted_run_until_it_is_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.retention.PRUNE_BATCH", 2)
    kept, _ = await drawn(store, 1, webhook_endpoint=HOOK)
    for _ in range(3):
        run, _ = await drawn(store, 1, webhook_endpoint=HOOK)
        await store.runs.delete(run.id)
    await settle(store)
    assert await store.retention.expire_deliveries(older_than_seconds=60) == 0
    assert await store.retention.expire_deliveries(older_than_seconds=-1) == 3
    assert [each.run_id for each in await store.deliveries.list()] == [kept.id]
    assert await store.runs.prune(older_than_seconds=-1) == 1
    assert await store.deliveries.list() == []


async def test_a_preview_says_what_goes_and_nothing_goes(store: Store) -> None:
    await drawn(store, 100, webhook_endpoint=HOOK)
    for _ in range(2):
        await drawn(store, 30)
    gone, _ = await drawn(store, 1, webhook_endpoint=HOOK)
    await store.runs.delete(gone.id)
    before = await store.runs.list()
    assert await store.retention.preview(older_than_seconds=60, max_bytes=None) == Expiry()
    by_budget = await store.retention.preview(older_than_seconds=60, max_bytes=101)
    assert by_budget == Expiry(num_runs_without_images=2, image_bytes=60)
    by_age = await store.retention.preview(older_than_seconds=-1, max_bytes=90)
    assert by_age == Expiry(num_runs=2, run_bytes=60, num_deliveries=1, bytes_over_budget=10)
    assert await store.runs.list() == before
    assert await store.runs.prune(older_than_seconds=-1) == by_age.num_runs
    assert await store.retention.expire_deliveries(older_than_seconds=-1) == by_age.num_deliveries
    assert (await store.retention.expire_images(max_bytes=90)).bytes_over_budget == by_age.bytes_over_budget
