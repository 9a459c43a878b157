from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
import standardwebhooks

from safelight.runs import Delivery, DeliveryStatus, Run, RunStatus
from safelight.store import Hosts, Store
from safelight.store.schema import runs
from safelight.webhooks.signing import new_secret
from safelight.webhooks.targets import TargetPolicy

from . import receiver as behaviours
from .conftest import EndRun, delivering, until
from .receiver import answers, one_after_the_other, receiving


async def delivery_of(store: Store, run: Run) -> Delivery:
    (delivery,) = await store.deliveries.list(run_id=run.id)
    return delivery


async def wait_for_end(store: Store, run: Run, seconds: float = 20.0) -> Delivery:
    async def has_ended() -> bool:
        return (await delivery_of(store, run)).status is not DeliveryStatus.PENDING

    await until(has_ended, seconds)
    return await delivery_of(store, run)


async def test_a_run_that_succeeded_is_told_with_its_pictures_and_a_signature(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store):
        run = await end_run(receiver.url, num_images=2)
        delivery = await wait_for_end(store, run)
    assert delivery.status is DeliveryStatus.DELIVERED
    (request,) = receiver.arrived
    secret = (await store.project_secrets.newest("default")).secret
    told = standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    assert told == {
        "run_id": run.id,
        "run_time_ms": 1234.5,
        "message": "Successfully generated images",
        "result": [base64.b64encode(f"picture {index} of {run.id}".encode()).decode() for index in range(2)],
        "status_code": 200,
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == delivery.event_id
    (attempt,) = delivery.attempts
    assert (attempt.status_code, attempt.error, attempt.response_excerpt) == (200, None, "ok")


@pytest.mark.parametrize(
    ("status", "status_code", "code"),
    [(RunStatus.FAILED, 500, "out_of_memory"), (RunStatus.CANCELLED, 409, "run_cancelled")],
)
async def test_a_run_without_pictures_is_told_too(
    store: Store, end_run: EndRun, status: RunStatus, status_code: int, code: str
) -> None:
    async with receiving() as receiver, delivering(store):
        run = await end_run(receiver.url, status)
        await wait_for_end(store, run)
    told = json.loads(receiver.arrived[0].body)
    assert (told["run_id"], told["status_code"], told["result"], told["code"]) == (run.id, status_code, [], code)
    assert told["message"]


async def test_a_webhook_is_told_the_status_that_a_waiting_caller_gets(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store):
        run = await end_run(receiver.url, RunStatus.FAILED, code="model_unavailable")
        await wait_for_end(store, run)
    assert json.loads(receiver.arrived[0].body)["status_code"] == 503


async def test_a_receiver_that_is_down_is_told_when_it_is_back(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        port = receiver.port
    async with delivering(store, retry_seconds=[0] + [0.1] * 40):
        run = await end_run(f"http://127.0.0.1:{port}/hook")

        async def was_tried_twice() -> bool:
            return (await delivery_of(store, run)).num_attempts >= 2

        await until(was_tried_twice)
        async with receiving(port=port) as receiver:
            delivery = await wait_for_end(store, run)
    assert delivery.status is DeliveryStatus.DELIVERED
    assert [request.headers["webhook-id"] for request in receiver.arrived] == [delivery.event_id]
    assert all("refused" in (attempt.error or "") for attempt in delivery.attempts[:-1])


async def test_every_try_has_the_same_id_and_the_same_bytes_and_a_fresh_signature(
    store: Store, end_run: EndRun
) -> None:
    clock = iter(range(1_000_000_000, 2_000_000_000, 1000))
    unwell = one_after_the_other(answers(500), behaviours.resets, behaviours.hangs_up, answers(200))
    async with receiving(unwell) as receiver, delivering(store, now=lambda: next(clock)):
        delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.DELIVERED
    assert [attempt.status_code for attempt in delivery.attempts] == [500, None, None, 200]
    assert len({request.headers["webhook-id"] for request in receiver.arrived}) == 1
    assert len({request.body for request in receiver.arrived}) == 1
    assert len({request.headers["webhook-timestamp"] for request in receiver.arrived}) == 4
    assert len({request.headers["webhook-signature"] for request in receiver.arrived}) == 4


async def test_a_delivery_has_failed_after_the_last_try(store: Store, end_run: EndRun) -> None:
    async with receiving(answers(500, b"no luck")) as receiver, delivering(store, retry_seconds=(0, 0.01, 0.01)):
        delivery = await wait_for_end(store, await end_run(receiver.url))
        await asyncio.sleep(0.1)
    assert delivery.status is DeliveryStatus.FAILED
    assert len(receiver.arrived) == delivery.num_attempts == 3
    assert delivery.attempts[-1].response_excerpt == "no luck"


async def test_gone_is_final(store: Store, end_run: EndRun) -> None:
    async with receiving(answers(410)) as receiver, delivering(store):
        delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.FAILED
    assert len(receiver.arrived) == 1


async def test_a_redirect_is_not_followed_but_tried_again(store: Store, end_run: EndRun) -> None:
    async with receiving() as elsewhere:
        moved = one_after_the_other(answers(307, location=elsewhere.url), answers(200))
        async with receiving(moved) as receiver, delivering(store):
            delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.DELIVERED
    assert elsewhere.num_connections == 0
    assert [attempt.status_code for attempt in delivery.attempts] == [307, 200]


async def test_retry_after_is_obeyed_up_to_a_day_and_never_shortens_the_schedule(store: Store, end_run: EndRun) -> None:
    for asked, at_least, at_most in [("3600", 3500, 3601), ("99999999", 86000, 86401), ("0", 500, 1201)]:
        async with receiving(answers(503, Retry_After=asked)) as receiver:
            run = await end_run(receiver.url)
            async with delivering(store, retry_seconds=(0, 600 if asked != "0" else 1000)):

                async def was_tried(run: Run = run) -> bool:
                    return (await delivery_of(store, run)).num_attempts == 1

                await until(was_tried)
        delivery = await delivery_of(store, run)
        assert delivery.next_attempt_at is not None
        assert at_least <= delivery.next_attempt_at - time.time() <= at_most


async def test_jitter_lengthens_waits_by_its_share(store: Store, end_run: EndRun) -> None:
    async with receiving(answers(500)) as receiver:
        run = await end_run(receiver.url)
        async with delivering(store, retry_seconds=(0, 1000), jitter=lambda: 0.5):
            await until(lambda: receiver.arrived)

            async def was_tried() -> bool:
                return (await delivery_of(store, run)).num_attempts == 1

            await until(was_tried)
    delivery = await delivery_of(store, run)
    assert delivery.next_attempt_at is not None
    assert delivery.next_attempt_at - time.time() == pytest.approx(1100, abs=5)


async def test_an_address_that_is_forbidden_is_never_called_and_given_up(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store, policy=TargetPolicy()):
        delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.FAILED
    assert receiver.num_connections == 0
    assert delivery.num_attempts == 1
    assert "webhooks.allowed_networks" in (delivery.attempts[0].error or "")


async def test_a_name_that_leads_inside_is_tried_again_since_its_answer_may_change(
    store: Store, end_run: EndRun
) -> None:
    answers_of_the_resolver = iter([["10.0.0.1"], ["169.254.169.254"]])

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers_of_the_resolver, ["127.0.0.1"])

    async with receiving() as receiver, delivering(store, resolve=resolve):
        run = await end_run(receiver.url.replace("127.0.0.1", "moving.example"))
        delivery = await wait_for_end(store, run)
    assert delivery.status is DeliveryStatus.DELIVERED
    assert receiver.num_connections == 1
    assert receiver.arrived[0].headers["host"] == f"moving.example:{receiver.port}"
    assert delivery.num_attempts == 3


async def test_a_rotation_signs_with_both_secrets(store: Store, end_run: EndRun) -> None:
    old, new = new_secret(), new_secret()
    current = [(old,), (new, old), (new,)]

    async def secrets(delivery: Delivery) -> Sequence[str]:
        return current[len(receiver.arrived)]

    async with receiving() as receiver, delivering(store, secrets=secrets):
        for _ in range(2):
            await wait_for_end(store, await end_run(receiver.url))
        during = receiver.arrived[1]
        for secret in (old, new):
            standardwebhooks.Webhook(secret).verify(during.body, during.headers)
        await asyncio.sleep(0)


async def test_projects_sign_with_different_secrets(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store):
        for project in ("ours", "theirs"):
            await wait_for_end(store, await end_run(receiver.url, project=project))
    ours, theirs = receiver.arrived
    verifier = standardwebhooks.Webhook((await store.project_secrets.newest("ours")).secret)
    verifier.verify(ours.body, ours.headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(theirs.body, theirs.headers)


async def test_hostile_hosts_hold_back_nobody(store: Store, end_run: EndRun) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with (
        receiving(behaviours.is_silent) as tarpit,
        receiving(behaviours.drips) as dripping,
        receiving() as good,
    ):
        for bad in (tarpit, dripping):
            for _ in range(6):
                await end_run(bad.url.replace("127.0.0.1", f"bad{bad.port}.example"))
        async with delivering(store, timeout_seconds=8, resolve=resolve):
            await until(lambda: tarpit.num_open == 2 and dripping.num_open == 2)
            for _ in range(5):
                started = time.monotonic()
                run = await end_run(good.url.replace("127.0.0.1", "good.example"))
                assert (await wait_for_end(store, run)).status is DeliveryStatus.DELIVERED
                assert time.monotonic() - started < 4
            assert tarpit.most_open == dripping.most_open == 2


async def test_a_host_gets_two_at_once_and_all_of_its_own(store: Store, end_run: EndRun) -> None:
    async def slowly(writer: asyncio.StreamWriter, request: behaviours.Arrived) -> None:
        await asyncio.sleep(0.05)
        await answers(200)(writer, request)

    async with receiving(slowly) as receiver:
        runs = [await end_run(receiver.url) for _ in range(10)]
        async with delivering(store):
            for run in runs:
                assert (await wait_for_end(store, run)).status is DeliveryStatus.DELIVERED
    assert receiver.most_open == 2
    assert len({request.headers["webhook-id"] for request in receiver.arrived}) == len(receiver.arrived) == 10


async def test_two_deliverers_share_the_work_without_sending_twice(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        runs = [await end_run(receiver.url) for _ in range(12)]
        async with delivering(store), delivering(store):
            for run in runs:
                await wait_for_end(store, run)
    assert len(receiver.arrived) == 12


async def test_a_hint_starts_a_delivery_long_before_the_next_look(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store, poll_seconds=30):
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await wait_for_end(store, await end_run(receiver.url))
        assert time.monotonic() - started < 15


async def test_resending_sends_the_same_once_more(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver, delivering(store):
        run = await end_run(receiver.url)
        delivery = await wait_for_end(store, run)
        await store.deliveries.resend(delivery.id)
        await until(lambda: len(receiver.arrived) == 2)
        await wait_for_end(store, run)
    first, second = receiver.arrived
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_a_run_deleted_on_the_way_ends_its_delivery_quietly(store: Store, end_run: EndRun) -> None:
    async with receiving(behaviours.is_silent) as receiver, delivering(store, timeout_seconds=0.3):
        run = await end_run(receiver.url)
        await until(lambda: receiver.arrived)
        await store.runs.delete(run.id)
        await asyncio.sleep(0.5)
    delivery = await delivery_of(store, run)
    assert (delivery.status, delivery.reason, delivery.num_attempts) == (
        DeliveryStatus.FAILED,
        "the run was deleted",
        1,
    )
    assert len(receiver.arrived) == 1


async def test_a_run_that_failed_is_told_though_the_pictures_it_had_are_gone(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        run = await end_run(receiver.url, RunStatus.FAILED)
        expire = sa.update(runs).values(images_expired_at=1.0)
        await store._database.write(lambda connection: connection.execute(expire))
        async with delivering(store):
            assert (await wait_for_end(store, run)).status is DeliveryStatus.DELIVERED
    assert json.loads(receiver.arrived[0].body)["code"] == "out_of_memory"


async def test_a_missing_image_is_tried_again_not_told_as_something_else(store: Store, end_run: EndRun) -> None:
    async with receiving() as receiver:
        run = await end_run(receiver.url)
        await store.images.remove([image.path for image in run.images])
        async with delivering(store, retry_seconds=(0, 0.01)):
            delivery = await wait_for_end(store, run)
    assert delivery.status is DeliveryStatus.FAILED
    assert receiver.num_connections == 0
    assert delivery.num_attempts == 2


async def test_a_try_that_goes_wrong_inside_is_recorded_like_any_other(store: Store, end_run: EndRun) -> None:
    async def no_secrets(delivery: Delivery) -> Sequence[str]:
        raise RuntimeError("the secrets are gone")

    async with receiving() as receiver, delivering(store, retry_seconds=(0, 0.01), secrets=no_secrets):
        delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.FAILED
    assert [attempt.error for attempt in delivery.attempts] == 2 * [
        "it went wrong inside the server (RuntimeError); its log says more"
    ]


async def test_what_is_cut_off_by_a_stop_is_sent_again_by_the_next(store: Store, end_run: EndRun) -> None:
    cut_then_well = one_after_the_other(behaviours.is_silent, answers(200))
    async with receiving(cut_then_well) as receiver:
        async with delivering(store, timeout_seconds=0.25, retry_seconds=(0, 0.01, 0.01)):
            run = await end_run(receiver.url)
            await until(lambda: receiver.arrived)
        assert (await delivery_of(store, run)).status is DeliveryStatus.PENDING
        async with delivering(store):
            delivery = await wait_for_end(store, run)
    assert delivery.status is DeliveryStatus.DELIVERED
    first, second = receiver.arrived
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


async def test_a_cancelled_deliverer_stops_cleanly_and_leaves_no_task(store: Store, end_run: EndRun) -> None:
    from safelight.config import WebhookSettings
    from safelight.webhooks.deliverer import Deliverer

    from .conftest import LOOPBACK

    async with receiving(answers(200)) as receiver:
        run = await end_run(receiver.url)
        deliverer = Deliverer(store, WebhookSettings(), policy=LOOPBACK)
        task = asyncio.create_task(deliverer.run())
        await wait_for_end(store, run)
        before = asyncio.all_tasks()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() < before


async def test_trouble_of_the_store_is_outlived(
    store: Store, end_run: EndRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = store.deliveries.claim_due
    troubles = [OSError("the database went away"), OSError("and again")]

    async def claim_due(hosts: Hosts, *, limit: int, lease_seconds: float) -> list[Delivery]:
        if troubles:
            raise troubles.pop()
        return await real(hosts, limit=limit, lease_seconds=lease_seconds)

    monkeypatch.setattr(store.deliveries, "claim_due", claim_due)
    async with receiving() as receiver, delivering(store, poll_seconds=0.05):
        delivery = await wait_for_end(store, await end_run(receiver.url))
    assert delivery.status is DeliveryStatus.DELIVERED
    assert "could not be claimed" in caplog.text
