"""Deliveries: what is due, what comes of attempts, resending."""

from __future__ import annotations

import asyncio

import pytest

from safelight.errors import NotFound
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus
from safelight.store import Store

from .making import HOOK, end_one

SCHEDULE = (0.0, 5.0, 300.0)


def attempt(number: int = 1, status_code: int | None = 500) -> DeliveryAttempt:
    return DeliveryAttempt(number=number, at=1.0, duration_ms=2.0, status_code=status_code, response_excerpt="\0oh")


async def record(
    store: Store, delivery: Delivery, *, delivered: bool = False, give_up: bool = False, wait: float | None = None
) -> Delivery:
    return await store.deliveries.record(
        delivery,
        attempt(),
        retry_seconds=SCHEDULE,
        delivered=delivered,
        give_up=give_up,
        retry_after_seconds=wait,
    )


async def due_one(store: Store, lease_seconds: float = 60.0) -> Delivery:
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=lease_seconds)
    return delivery


async def test_a_run_with_a_webhook_has_one_delivery_due_at_its_end(store: Store) -> None:
    await end_one(store)
    assert await store.deliveries.seconds_to_next() is None
    run = await end_one(store, webhook_endpoint=HOOK)
    assert await store.deliveries.seconds_to_next() == 0.0
    delivery = await due_one(store)
    assert (delivery.run_id, delivery.url, delivery.created_at) == (run.id, HOOK, run.ended_at)
    assert delivery.event_id == "evt_" + run.id.replace("-", "")


async def test_a_due_delivery_is_taken_once_until_its_lease_ends(store: Store, neighbour: Store) -> None:
    for _ in range(6):
        await end_one(store, webhook_endpoint=HOOK)
    taken = await asyncio.gather(
        *(one.deliveries.claim_due(limit=2, lease_seconds=60) for one in (store, neighbour, store, neighbour))
    )
    ids = [delivery.id for part in taken for delivery in part]
    assert len(ids) == len(set(ids)) == 6
    assert await store.deliveries.claim_due(limit=9, lease_seconds=60) == []
    assert 55 < (await store.deliveries.seconds_to_next() or 0) <= 60


async def test_a_delivery_whose_sender_died_is_due_again(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    first = await due_one(store, lease_seconds=-1)
    assert (await due_one(store)).id == first.id


async def test_failed_attempts_wait_as_the_schedule_says_and_then_end(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    delivery = await due_one(store)
    for wait in SCHEDULE[1:]:
        delivery = await record(store, delivery)
        assert delivery.status is DeliveryStatus.PENDING
        assert wait - 5 < (await store.deliveries.seconds_to_next() or 0) <= wait
    delivery = await record(store, delivery)
    assert (delivery.status, delivery.next_attempt_at, delivery.num_attempts) == (DeliveryStatus.FAILED, None, 3)
    assert [tried.number for tried in delivery.attempts] == [1, 2, 3]
    assert await store.deliveries.seconds_to_next() is None


async def test_a_receiver_may_ask_for_a_longer_wait(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    await record(store, await due_one(store), wait=90.0)
    assert 85 < (await store.deliveries.seconds_to_next() or 0) <= 90


async def test_giving_up_ends_a_delivery_at_once(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    assert (await record(store, await due_one(store), give_up=True)).status is DeliveryStatus.FAILED


async def test_what_has_arrived_stays_so_whatever_a_late_sender_says(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    delivery = await due_one(store)
    await record(store, delivery, delivered=True)
    for give_up in (False, True):
        late = await record(store, delivery, give_up=give_up)
        assert (late.status, late.next_attempt_at) == (DeliveryStatus.DELIVERED, None)
    assert late.num_attempts == 3


async def test_a_delivery_sent_again_has_the_same_event_and_a_whole_schedule(store: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    failed = await record(store, await due_one(store), give_up=True)
    again = await store.deliveries.resend(failed.id, project="default")
    assert (again.status, again.event_id, len(again.attempts)) == (DeliveryStatus.PENDING, failed.event_id, 1)
    for _ in SCHEDULE[1:]:
        again = await record(store, again)
        assert again.status is DeliveryStatus.PENDING
    again = await record(store, again)
    assert (again.status, again.num_attempts) == (DeliveryStatus.FAILED, 4)


async def test_deliveries_are_listed_and_kept_from_other_projects(store: Store) -> None:
    mine = await end_one(store, project="mine", webhook_endpoint=HOOK)
    theirs = await end_one(store, project="theirs", webhook_endpoint=HOOK)
    assert [delivery.run_id for delivery in await store.deliveries.list()] == [theirs.id, mine.id]
    assert [delivery.run_id for delivery in await store.deliveries.list(run_id=mine.id)] == [mine.id]
    assert await store.deliveries.list(status=DeliveryStatus.FAILED) == []
    [delivery] = await store.deliveries.list(project="mine")
    assert await store.deliveries.get(delivery.id, project="mine") == delivery
    for attempted in (store.deliveries.get, store.deliveries.resend):
        with pytest.raises(NotFound) as raised:
            await attempted(delivery.id, project="theirs")
        assert raised.value.code == "delivery_not_found"
