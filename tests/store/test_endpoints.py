"""Registered webhook endpoints: who is told, with which secrets, and how dead ones are put aside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from safelight.errors import Conflict, InvalidFields, NotFound
from safelight.keys import Scope
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus, EndpointStatus, RunStatus, WebhookEndpoint
from safelight.store import Hosts, Store
from safelight.store.database import now

from .making import HOOK, SUCCEEDED, claim_one, draw, end_one, everything_in, on_sqlite, submit

ELSEWHERE = "https://Elsewhere.example./in?a=1"


async def make(store: Store, url: str = ELSEWHERE, **given: object) -> WebhookEndpoint:
    return (await store.webhook_endpoints.create(url, **given))[0]  # type: ignore[arg-type]


async def sent_to(store: Store, endpoint: WebhookEndpoint) -> list[Delivery]:
    return await store.deliveries.list(endpoint_id=endpoint.id)


async def record(
    store: Store, delivery: Delivery, status_code: int = 500, *, at: float = 1.0, **given: object
) -> Delivery:
    attempt = DeliveryAttempt(number=1, at=at, duration_ms=2.0, status_code=status_code)
    usual: dict[str, object] = {"retry_seconds": (0, 5, 5, 5), "delivered": status_code == 200, "give_up": False}
    usual |= {"retry_after_seconds": None, "disable_after_seconds": 1000.0}
    return await store.deliveries.record(delivery, attempt, **(usual | given))  # type: ignore[arg-type]


async def test_an_ended_run_is_told_to_each_endpoint_that_wants_it_and_to_its_own_url(store: Store) -> None:
    everything = await make(store)
    failures = await make(store, "https://failures.example", events=[RunStatus.FAILED])
    theirs = await make(store, project="theirs")
    run = await end_one(store, webhook_endpoint=HOOK)
    told = await store.deliveries.list(run_id=run.id)
    assert {(each.endpoint_id, each.url, each.host) for each in told} == {
        (None, HOOK, "example.com"),
        (everything.id, ELSEWHERE, "elsewhere.example"),
    }
    assert {each.event_id for each in told} == {"evt_" + run.id.replace("-", "")}
    assert {each.status for each in told} == {DeliveryStatus.PENDING}
    assert await sent_to(store, failures) == await sent_to(store, theirs) == []
    cancelled = await store.runs.cancel((await submit(store)).id)
    assert [each.run_id for each in await store.deliveries.list(run_id=cancelled.id)] == [cancelled.id]


async def test_a_run_whose_end_fails_leaves_no_delivery_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(store)
    await submit(store)
    claim = await claim_one(store)
    with monkeypatch.context() as broken:
        broken.setattr("safelight.store.deliveries._columns", None)
        with pytest.raises(TypeError):
            await store.runs.finish(claim, SUCCEEDED)
    assert await store.deliveries.list() == []
    assert (await store.runs.get(claim.run.id)).status is RunStatus.RUNNING
    await store.runs.finish(claim, SUCCEEDED)
    assert len(await store.deliveries.list()) == 1


async def test_an_endpoint_of_one_key_is_told_of_its_runs_and_of_its_successors_only(store: Store) -> None:
    key, _ = await store.keys.create("shop", project="theirs", scopes=frozenset({Scope.PREDICT}))
    other, _ = await store.keys.create("other", project="theirs", scopes=frozenset({Scope.PREDICT}))
    endpoint = await make(store, key="shop")
    assert (endpoint.project, endpoint.key_id) == ("theirs", key.id)
    rotated, _ = await store.keys.rotate(key.id)
    for runs_of in (key.id, rotated.id, other.id, None):
        await end_one(store, project="theirs", key_id=runs_of)
    told = {each.run_id for each in await sent_to(store, endpoint)}
    wanted = [run for run in (await store.runs.list())[0] if run.key_id in {key.id, rotated.id}]
    assert told == {run.id for run in wanted} and len(told) == 2
    with pytest.raises(NotFound) as raised:
        await make(store, HOOK, key="nobody")
    assert raised.value.code == "key_not_found"


async def test_what_was_due_before_a_time_and_failed_since_is_sent_again_too(store: Store) -> None:
    endpoint = await make(store)
    for at in (1.0, 2.0e9):
        await end_one(store)
        [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
        await record(store, delivery, at=at, give_up=True)
    assert await store.deliveries.resend_since(endpoint.id, 1.9e9) == 1
    [due] = await store.deliveries.list(status=DeliveryStatus.PENDING)
    assert due.attempts[0].at == 2.0e9


async def test_a_url_is_one_endpoint_of_a_project(store: Store) -> None:
    first = await make(store)
    other = await make(store, HOOK)
    await make(store, project="theirs")
    for attempt in (make(store), store.webhook_endpoints.update(other.id, url=ELSEWHERE)):
        with pytest.raises(Conflict, match="already"):
            await attempt
    assert [each.id for each in await store.webhook_endpoints.list(project="default")] == [first.id, other.id]
    assert len(await store.webhook_endpoints.list()) == 3


async def test_a_project_has_no_more_endpoints_than_its_runs_can_carry(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.store.endpoints.MAX_ENDPOINTS", 2)
    await make(store)
    await make(store, HOOK)
    with pytest.raises(Conflict, match="at most 2"):
        await make(store, "https://third.example")
    await make(store, "https://third.example", project="theirs")


@pytest.mark.parametrize("events", [[], [RunStatus.QUEUED], [RunStatus.FAILED, RunStatus.RUNNING]])
async def test_only_ends_can_be_asked_for(store: Store, events: list[RunStatus]) -> None:
    with pytest.raises(InvalidFields) as raised:
        await make(store, events=events)
    assert raised.value.fields[0].field == "events"


async def test_an_endpoint_of_another_project_does_not_exist(store: Store) -> None:
    endpoint = await make(store, project="mine")
    rooms = store.webhook_endpoints
    for attempt in (rooms.get, rooms.update, rooms.remove, rooms.rotate, rooms.secrets):
        with pytest.raises(NotFound) as raised:
            await attempt(endpoint.id, project="theirs")
        assert raised.value.code == "endpoint_not_found"
    with pytest.raises(NotFound):
        await store.deliveries.resend_since(endpoint.id, 0.0, project="theirs")
    assert await rooms.get(endpoint.id, project="mine") == endpoint


async def test_a_rotated_secret_stays_beside_its_successor_for_a_day(store: Store, neighbour: Store) -> None:
    endpoint, first = await store.webhook_endpoints.create(ELSEWHERE)
    assert await neighbour.webhook_endpoints.secrets(endpoint.id) == (first,)
    rotated, second = await store.webhook_endpoints.rotate(endpoint.id)
    assert await neighbour.webhook_endpoints.secrets(endpoint.id) == (second, first) and first != second
    at = await store._database.read(lambda connection: connection.execute(sa.select(now())).scalar_one())
    assert rotated.previous_secret_ends_at is not None and 86380 < rotated.previous_secret_ends_at - at < 86401
    _, third = await store.webhook_endpoints.rotate(endpoint.id)
    assert await store.webhook_endpoints.secrets(endpoint.id) == (third, second, first)
    assert (await store.webhook_endpoints.get(endpoint.id)).previous_secret_ends_at is not None


async def test_a_secret_that_leaked_ends_at_once(store: Store) -> None:
    endpoint, _ = await store.webhook_endpoints.create(ELSEWHERE)
    rotated, second = await store.webhook_endpoints.rotate(endpoint.id, overlap_seconds=0)
    assert await store.webhook_endpoints.secrets(endpoint.id) == (second,)
    assert rotated.previous_secret_ends_at is None


async def test_a_secret_that_was_ending_does_not_live_longer_by_another_rotation(store: Store) -> None:
    endpoint, _ = await store.webhook_endpoints.create(ELSEWHERE)
    _, second = await store.webhook_endpoints.rotate(endpoint.id, overlap_seconds=0.05)
    _, third = await store.webhook_endpoints.rotate(endpoint.id)
    await asyncio.sleep(0.1)
    assert await store.webhook_endpoints.secrets(endpoint.id) == (third, second)


@on_sqlite
async def test_secrets_are_nowhere_in_the_database(store: Store, data: Path) -> None:
    endpoint, secret = await store.webhook_endpoints.create(ELSEWHERE)
    kept = everything_in(data)
    assert endpoint.id.encode() in kept and secret.removeprefix("whsec_").encode() not in kept
    _, other = await store.webhook_endpoints.create(HOOK)
    assert len({secret, other, (await store.project_secrets.newest("default")).secret}) == 3


async def test_gone_disables_at_once_and_ends_what_waits(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    await end_one(store)
    [one, _] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    ended = await record(store, one, 410, give_up=True)
    assert ended.reason == "the endpoint was disabled: it answered 410 Gone"
    seen = await store.webhook_endpoints.get(endpoint.id)
    assert (seen.status, seen.status_reason) == (EndpointStatus.DISABLED, "it answered 410 Gone")
    assert {(each.status, each.reason) for each in await sent_to(store, endpoint)} == {
        (DeliveryStatus.FAILED, ended.reason)
    }
    assert await store.deliveries.seconds_to_next() is None


async def test_what_an_address_says_that_an_endpoint_has_left_is_nothing_about_it(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await store.webhook_endpoints.update(endpoint.id, url=HOOK)
    recorded = await record(store, delivery, 410, give_up=True)
    assert (recorded.status, recorded.url, recorded.num_attempts) == (DeliveryStatus.PENDING, HOOK, 1)
    seen = await store.webhook_endpoints.get(endpoint.id)
    assert (seen.status, seen.failing_since) == (EndpointStatus.ENABLED, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("url = 'https://moved.example/', host = 'moved.example'", [("https://moved.example/", "moved.example")]),
        ("status = 'disabled'", []),
    ],
)
async def test_a_delivery_made_beside_a_change_of_its_endpoint_heeds_it_when_it_is_due(
    store: Store, change: str, expected: list[tuple[str, str]]
) -> None:
    endpoint = await make(store)
    await end_one(store)
    # As where the transaction of the end did not see that of the change, nor that one the delivery.
    await store._database.write(
        lambda connection: connection.exec_driver_sql(f"UPDATE webhook_endpoints SET {change} WHERE TRUE")
    )
    due = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    assert [(each.url, each.host) for each in due] == expected
    [kept] = await sent_to(store, endpoint)
    if not expected:
        assert (kept.status, kept.reason) == (DeliveryStatus.FAILED, "the endpoint was disabled")


async def test_only_failures_for_long_enough_disable_and_one_success_is_forgiveness(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    assert (await record(store, delivery)).status is DeliveryStatus.PENDING
    assert (await store.webhook_endpoints.get(endpoint.id)).failing_since is not None
    await asyncio.sleep(0.05)
    await record(store, delivery, 200)
    assert (await store.webhook_endpoints.get(endpoint.id)).failing_since is None
    await store.deliveries.resend(delivery.id)
    await record(store, delivery, disable_after_seconds=0.04)
    assert (await store.webhook_endpoints.get(endpoint.id)).status is EndpointStatus.ENABLED
    await asyncio.sleep(0.05)
    ended = await record(store, delivery, disable_after_seconds=0.04)
    assert ended.status is DeliveryStatus.FAILED
    assert "every try of the last" in (await store.webhook_endpoints.get(endpoint.id)).status_reason


async def test_a_try_that_says_nothing_of_the_endpoint_does_not_count(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await record(store, delivery, disable_after_seconds=None)
    assert (await store.webhook_endpoints.get(endpoint.id)).failing_since is None


async def test_what_a_disabled_endpoint_missed_is_sent_when_it_is_enabled_again(store: Store) -> None:
    endpoint = await make(store)
    await store.webhook_endpoints.update(endpoint.id, status=EndpointStatus.DISABLED)
    missed = await end_one(store)
    [delivery] = await sent_to(store, endpoint)
    assert (delivery.status, delivery.reason) == (DeliveryStatus.FAILED, "the endpoint was disabled")
    for attempt in (store.deliveries.resend(delivery.id), store.deliveries.resend_since(endpoint.id, 0.0)):
        with pytest.raises(Conflict, match="enable it first"):
            await attempt
    enabled = await store.webhook_endpoints.update(endpoint.id, status=EndpointStatus.ENABLED)
    assert (enabled.status, enabled.status_reason, enabled.failing_since) == (EndpointStatus.ENABLED, "", None)
    assert await store.deliveries.resend_since(endpoint.id, 0.0) == 1
    [due] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    assert (due.run_id, due.reason) == (missed.id, "")


async def test_resending_since_takes_what_failed_then_or_all_of_it(store: Store) -> None:
    endpoint = await make(store)
    ended = [await end_one(store) for _ in range(3)]
    for delivery in await store.deliveries.claim_due(limit=10, lease_seconds=60):
        await record(store, delivery, 200 if delivery.run_id == ended[2].id else 500, give_up=True)
    assert ended[1].ended_at is not None
    assert await store.deliveries.resend_since(endpoint.id, ended[1].ended_at) == 1
    assert await store.deliveries.resend_since(endpoint.id, 0.0) == 1
    assert await store.deliveries.resend_since(endpoint.id, 0.0, include_delivered=True) == 1
    assert len(await store.deliveries.claim_due(limit=10, lease_seconds=60)) == 3


async def test_resending_goes_to_where_the_endpoint_is_now(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await record(store, delivery, give_up=True)
    await end_one(store)
    await store.webhook_endpoints.update(endpoint.id, url="https://moved.example/x", events=[RunStatus.FAILED])
    [waiting, failed] = await sent_to(store, endpoint)
    assert (waiting.url, failed.url) == ("https://moved.example/x", ELSEWHERE)
    again = await store.deliveries.resend(failed.id)
    assert (again.url, again.host) == ("https://moved.example/x", "moved.example")
    await record(store, failed, give_up=True)
    await store.deliveries.resend_since(endpoint.id, 0.0)
    assert {each.host for each in await sent_to(store, endpoint)} == {"moved.example"}


async def test_what_was_on_its_way_to_a_removed_endpoint_ends_and_stays_in_the_log(store: Store) -> None:
    endpoint = await make(store)
    await end_one(store)
    await store.webhook_endpoints.remove(endpoint.id)
    [delivery] = await sent_to(store, endpoint)
    assert (delivery.status, delivery.reason) == (DeliveryStatus.FAILED, "the endpoint was removed")
    with pytest.raises(NotFound):
        await store.deliveries.resend(delivery.id)
    with pytest.raises(NotFound):
        await store.signing_secrets(delivery)
    assert (await store.deliveries.get(delivery.id)).status is DeliveryStatus.FAILED
    await end_one(store)
    assert len(await store.deliveries.list()) == 1


async def test_a_late_failure_does_not_wake_a_delivery_that_was_ended(store: Store) -> None:
    await make(store)
    run = await end_one(store)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await store.runs.delete(run.id)
    late = await record(store, delivery)
    assert (late.status, late.reason, late.next_attempt_at) == (DeliveryStatus.FAILED, "the run was deleted", None)
    assert (await record(store, delivery, 200)).status is DeliveryStatus.DELIVERED
    with pytest.raises(Conflict, match="gone"):
        await store.deliveries.resend(delivery.id)


async def test_what_is_released_is_due_at_once_unless_someone_else_has_it(store: Store, neighbour: Store) -> None:
    await end_one(store, webhook_endpoint=HOOK)
    [held] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await store.deliveries.release([held])
    assert await store.deliveries.seconds_to_next() == 0.0
    [theirs] = await neighbour.deliveries.claim_due(limit=10, lease_seconds=90)
    await store.deliveries.release([held])
    assert 80 < (await store.deliveries.seconds_to_next() or 0) <= 90
    await record(neighbour, theirs, 200)
    await neighbour.deliveries.release([theirs])
    assert await store.deliveries.seconds_to_next() is None


async def test_hosts_that_have_enough_to_do_are_left_out(store: Store) -> None:
    await end_one(store, webhook_endpoint="https://full.example/a")
    await end_one(store, webhook_endpoint=HOOK)
    due = store.deliveries
    assert await due.seconds_to_next(Hosts(without={"full.example", "example.com"})) is None
    assert await due.seconds_to_next(Hosts(only=())) is None
    assert await due.claim_due(Hosts(without={"full.example"}, only={"full.example"}), limit=10, lease_seconds=60) == []
    [taken] = await due.claim_due(Hosts(without={"full.example"}), limit=10, lease_seconds=60)
    assert taken.url == HOOK
    assert await due.seconds_to_next(Hosts(only={"full.example"})) == 0.0
    [left] = await due.claim_due(Hosts(only={"full.example"}), limit=10, lease_seconds=60)
    assert left.host == "full.example"


async def test_a_run_without_its_images_cannot_be_told_again(store: Store) -> None:
    endpoint = await make(store)
    await submit(store)
    claim = await claim_one(store)
    await draw(store, claim)
    await store.runs.finish(claim, SUCCEEDED)
    [delivery] = await store.deliveries.claim_due(limit=10, lease_seconds=60)
    await record(store, delivery, 200)
    await store.retention.expire_images(max_bytes=0)
    with pytest.raises(Conflict, match="nothing to send"):
        await store.deliveries.resend(delivery.id)
    assert await store.deliveries.resend_since(endpoint.id, 0.0, include_delivered=True) == 0
    assert (await store.deliveries.get(delivery.id)).status is DeliveryStatus.DELIVERED
