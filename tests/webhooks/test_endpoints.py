"""Registered endpoints under a deliverer at work: secrets, rotation, the circuit, stopping, hosts that are full."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
import standardwebhooks

from safelight.errors import TryLater
from safelight.runs import Delivery, DeliveryStatus, EndpointStatus, RunStatus
from safelight.store import Hosts, Store
from safelight.store.schema import runs

from . import receiver as behaviours
from .conftest import EndRun, delivering, until
from .receiver import answers, receiving


async def all_ended(store: Store) -> bool:
    return not await store.deliveries.list(status=DeliveryStatus.PENDING, limit=1)


def verifies(secret: str, request: behaviours.Arrived) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


async def test_each_address_gets_the_same_event_under_its_own_secret(store: Store, end_run: EndRun) -> None:
    async with receiving() as registered, receiving() as named, delivering(store):
        _, secret = await store.webhook_endpoints.create(registered.url)
        await end_run(named.url)
        await until(lambda: registered.arrived and named.arrived)
        await until(lambda: all_ended(store))
    [first], [second] = registered.arrived, named.arrived
    assert verifies(secret, first) and not verifies((await store.project_secrets.newest("default")).secret, first)
    assert verifies((await store.project_secrets.newest("default")).secret, second) and not verifies(secret, second)
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


async def test_no_delivery_is_lost_to_a_rotation_whenever_the_receiver_changes_over(
    store: Store, end_run: EndRun
) -> None:
    num_runs = 90
    async with receiving() as receiver, delivering(store):
        endpoint, old = await store.webhook_endpoints.create(receiver.url)
        for number in range(num_runs):
            if number == num_runs // 3:
                _, new = await store.webhook_endpoints.rotate(endpoint.id)
            await end_run(None)
        await until(lambda: all_ended(store), 60)
    assert len(receiver.arrived) == num_runs
    by_old = [verifies(old, request) for request in receiver.arrived]
    by_new = [verifies(new, request) for request in receiver.arrived]
    assert all(by_old), "the receiver may go on with the old secret until it ends"
    assert all(by_new[by_new.index(True) :]) and sum(by_new) >= num_runs // 2


async def test_no_delivery_to_a_request_s_url_is_lost_to_a_rotation_of_its_project(
    store: Store, end_run: EndRun
) -> None:
    async with receiving() as receiver, delivering(store):
        old = await store.project_secrets.newest("default")
        for number in range(20):
            if number == 10:
                new = await store.project_secrets.rotate("default")
            await end_run(receiver.url)
        await until(lambda: all_ended(store), 60)
    by_new = [verifies(new.secret, request) for request in receiver.arrived]
    assert len(by_new) == 20 and all(verifies(old.secret, request) for request in receiver.arrived)
    assert all(by_new[by_new.index(True) :]) and sum(by_new) >= 10


@pytest.mark.parametrize("status", [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED])
async def test_a_later_version_of_the_server_sends_the_same_bytes(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch, status: RunStatus
) -> None:
    async with receiving() as receiver, delivering(store):
        await end_run(receiver.url, status, num_images=2)
        await until(lambda: all_ended(store))
        monkeypatch.setattr("safelight.envelope.end_message", lambda run: "It went as it went")
        [delivery] = await store.deliveries.list()
        await store.deliveries.resend(delivery.id)
        await until(lambda: len(receiver.arrived) == 2)
    first, second = receiver.arrived
    assert first.body == second.body and first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_an_endpoint_that_is_gone_is_disabled_and_says_so(
    store: Store, end_run: EndRun, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(answers(410)) as receiver, delivering(store):
        endpoint, _ = await store.webhook_endpoints.create(receiver.url)
        await end_run(None)
        await until(lambda: all_ended(store))
        await end_run(None)
        await asyncio.sleep(0.2)
    seen = await store.webhook_endpoints.get(endpoint.id)
    assert (seen.status, seen.status_reason) == (EndpointStatus.DISABLED, "it answered 410 Gone")
    assert len(receiver.arrived) == 1
    assert any("410 Gone" in getattr(line, "reason", "") for line in caplog.records)


async def test_an_endpoint_that_only_fails_is_disabled_in_the_end(store: Store, end_run: EndRun) -> None:
    tries = [0] + [0.05] * 200
    async with receiving(answers(500)) as receiver, delivering(store, retry_seconds=tries, disable_after_days=3e-6):
        endpoint, _ = await store.webhook_endpoints.create(receiver.url)
        await end_run(None)
        await until(lambda: all_ended(store))
    [delivery] = await store.deliveries.list()
    assert delivery.reason.startswith("the endpoint was disabled: every try of the last")
    assert (await store.webhook_endpoints.get(endpoint.id)).status is EndpointStatus.DISABLED
    assert 1 < len(receiver.arrived) < 50


async def test_what_went_wrong_inside_is_not_held_against_the_endpoint(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        endpoint, _ = await store.webhook_endpoints.create(receiver.url)
        run = await end_run(None)
        await store.images.remove([image.path for image in run.images])
        async with delivering(store, retry_seconds=(0, 0.01, 0.01), disable_after_days=1e-9):
            await until(lambda: all_ended(store))
    seen = await store.webhook_endpoints.get(endpoint.id)
    assert (seen.status, seen.failing_since) == (EndpointStatus.ENABLED, None)


async def test_what_waits_for_an_endpoint_is_not_sent_once_it_is_removed(store: Store, end_run: EndRun) -> None:
    release = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter, request: behaviours.Arrived) -> None:
        await release.wait()
        await answers(200)(writer, request)

    async with receiving(slowly) as receiver:
        endpoint, _ = await store.webhook_endpoints.create(receiver.url)
        for _ in range(6):
            await end_run(None)
        async with delivering(store):
            await until(lambda: len(receiver.arrived) == 2)
            await store.webhook_endpoints.remove(endpoint.id)
            release.set()
            await until(lambda: receiver.num_open == 0)
            await asyncio.sleep(0.3)
    assert len(receiver.arrived) == 2
    assert {each.reason for each in await store.deliveries.list() if each.num_attempts == 0} == {
        "the endpoint was removed"
    }


async def test_a_stop_with_a_backlog_leaves_everything_due_at_once(store: Store, end_run: EndRun) -> None:
    async with receiving(behaviours.is_silent) as receiver:
        for _ in range(8):
            await end_run(receiver.url)
        async with delivering(store, timeout_seconds=15):
            await until(lambda: receiver.num_open == 2)
            assert (await store.deliveries.seconds_to_next() or 0) > 30
        due = await store.deliveries.claim_due(limit=100, lease_seconds=1)
    assert len(due) == 8


async def test_hosts_that_are_full_are_left_out_and_the_others_go_on(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.webhooks.deliverer._CLAIM_LIMIT", 3)
    asked: list[tuple[int, frozenset[str]]] = []
    real = store.deliveries.claim_due

    async def claim_due(hosts: Hosts, *, limit: int, lease_seconds: float) -> list[Delivery]:
        claimed = await real(hosts, limit=limit, lease_seconds=lease_seconds)
        asked.append((len(claimed), frozenset(hosts.without)))
        return claimed

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(store.deliveries, "claim_due", claim_due)
    async with receiving(behaviours.is_silent) as tarpit, receiving() as good:
        for _ in range(20):
            await end_run(tarpit.url.replace("127.0.0.1", "tarpit.example"))
        async with delivering(store, resolve=resolve) as deliverer:
            deliverer._lanes._max_waiting_per_host = 4
            await until(lambda: tarpit.num_open == 2)
            started = time.monotonic()
            await end_run(good.url)
            await until(lambda: good.arrived)
            assert time.monotonic() - started < 5
            assert deliverer._lanes.num_waiting <= 7
    assert asked[0][1] == frozenset() and asked[-1][1] == {"tarpit.example"}
    assert sum(num for num, _ in asked) <= 10


async def test_however_many_dead_hosts_wait_what_is_for_a_proven_one_is_claimed(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.webhooks.deliverer._CLAIM_LIMIT", 4)
    monkeypatch.setattr("safelight.webhooks.deliverer._MAX_UNPROVEN_WAITING", 8)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with (
        receiving(behaviours.is_silent) as tarpit,
        receiving() as good,
        delivering(store, resolve=resolve, timeout_seconds=15) as deliverer,
    ):
        await end_run(good.url)
        await until(lambda: good.arrived)
        for number in range(40):
            await end_run(tarpit.url.replace("127.0.0.1", f"dead{number}.example"))
        await until(lambda: tarpit.num_open == 24)
        await until(lambda: deliverer._lanes.num_unproven_waiting >= 8)
        await end_run(good.url)
        await until(lambda: len(good.arrived) == 2, 10)
        assert deliverer._lanes.num_unproven_waiting < 8 + 4


async def test_what_waits_for_an_endpoint_goes_to_where_that_has_moved(store: Store, end_run: EndRun) -> None:
    release = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter, request: behaviours.Arrived) -> None:
        await release.wait()
        await answers(200)(writer, request)

    async with receiving(slowly) as before, receiving() as after, delivering(store) as deliverer:
        endpoint, _ = await store.webhook_endpoints.create(before.url)
        for _ in range(4):
            await end_run(None)
        await until(lambda: before.num_open == 2 and deliverer._lanes.num_waiting == 2)
        await store.webhook_endpoints.update(endpoint.id, url=after.url)
        release.set()
        await until(lambda: all_ended(store))
    assert (len(before.arrived), len(after.arrived)) == (2, 2)


async def test_a_full_lane_is_filled_again_as_soon_as_it_is_worked_off(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.webhooks.deliverer._CLAIM_LIMIT", 3)
    async with receiving() as receiver:
        for _ in range(20):
            await end_run(receiver.url)
        started = time.monotonic()
        async with delivering(store, poll_seconds=30) as deliverer:
            deliverer._lanes._max_waiting_per_host = 4
            await until(lambda: all_ended(store))
            assert time.monotonic() - started < 20
    assert len(receiver.arrived) == 20


async def test_a_store_in_trouble_is_asked_less_and_less_and_the_log_stays_short(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "safelight.webhooks")
    real = store.deliveries.seconds_to_next
    asked_at: list[float] = []

    async def seconds_to_next(hosts: Hosts) -> float | None:
        asked_at.append(time.monotonic())
        if len(asked_at) <= 5:
            raise OSError("the database went away")
        return await real(hosts)

    monkeypatch.setattr(store.deliveries, "seconds_to_next", seconds_to_next)
    async with receiving() as receiver, delivering(store, poll_seconds=0.05):
        # Its hint comes while the store is in trouble, and must not cut the pause short.
        await end_run(receiver.url)
        await until(lambda: receiver.arrived)
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked_at)][:5]
    assert all(pause >= at_least for pause, at_least in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.8), strict=True))
    troubles = [line for line in caplog.records if "could not be claimed" in line.message]
    assert [line.exc_info is not None for line in troubles] == [True, False, False, False, False]
    assert "claimed again" in caplog.text


async def test_a_busy_store_needs_no_traceback(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def seconds_to_next(hosts: Hosts) -> float | None:
        raise TryLater("the database is busy")

    monkeypatch.setattr(store.deliveries, "seconds_to_next", seconds_to_next)
    async with delivering(store, poll_seconds=30):
        await until(lambda: "could not be claimed" in caplog.text)
    assert [line.exc_info for line in caplog.records if "could not be claimed" in line.message] == [None]


async def test_a_store_that_goes_away_in_the_middle_of_a_delivery_is_no_try_and_no_traceback(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def get(run_id: str) -> None:
        raise TryLater("the database cannot be reached")

    async with receiving() as receiver:
        await end_run(receiver.url)
        monkeypatch.setattr(store.runs, "get", get)
        async with delivering(store):
            await until(lambda: "was not recorded" in caplog.text)
    assert [line.exc_info for line in caplog.records if line.levelno >= logging.ERROR] == [None]
    [delivery] = await store.deliveries.list()
    assert (delivery.status, delivery.num_attempts) == (DeliveryStatus.PENDING, 0)


async def test_expired_images_are_never_told_as_an_empty_result(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        run = await end_run(receiver.url)
        expire = sa.update(runs).values(images_expired_at=1.0)
        await store._database.write(lambda connection: connection.execute(expire).close())
        async with delivering(store):
            await until(lambda: all_ended(store))
    [delivery] = await store.deliveries.list(run_id=run.id)
    assert (delivery.status, delivery.num_attempts) == (DeliveryStatus.FAILED, 1)
    assert delivery.attempts[0].error == "the images of the run have expired"
    assert receiver.num_connections == 0
