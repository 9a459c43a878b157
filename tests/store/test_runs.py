"""Submitting, finding, listing and forgetting runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from safelight.errors import Conflict, IdempotencyMismatch, InvalidFields, NotFound, Overloaded
from safelight.runs import DeliveryStatus, OutputFormat, RunParams, RunStatus, SamplerName
from safelight.store import Store

from .making import HOOK, SUCCEEDED, claim_one, draw, end_one, kinds_of, new_run, submit


async def test_a_submitted_run_is_found_as_it_was_asked_for(store: Store) -> None:
    params = RunParams(
        prompt="caf\u00e9 \U0001f3e0 \ud800 \0",
        guidance_scale=8.0,
        seed=2**53 - 1,
        sampler=SamplerName.DDIM,
        output_format=OutputFormat.WEBP,
    )
    asked = {"deadline_ms": 60_000, "traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "key_id": "key"}
    run = await submit(store, params=params, webhook_endpoint=HOOK + "/\ud800\0", **asked)
    assert run.params == params
    assert await store.runs.get(run.id) == run
    assert (run.status, run.fence, run.num_attempts) == (RunStatus.QUEUED, 0, 0)
    assert await kinds_of(store, run.id) == ["queued"]


async def test_a_run_of_another_project_does_not_exist(store: Store) -> None:
    run = await submit(store, project="mine")
    assert (await store.runs.get(run.id, project="mine")).id == run.id
    for attempt in (store.runs.get, store.runs.cancel, store.runs.delete):
        with pytest.raises(NotFound) as raised:
            await attempt(run.id, project="theirs")
        assert raised.value.code == "run_not_found"
    with pytest.raises(NotFound):
        await store.runs.get("no\0such\ud800run")


async def test_one_idempotency_key_makes_one_run(store: Store) -> None:
    given: dict[str, Any] = {"idempotency_key": "k", "body_digest": "d"}
    run = await submit(store, **given)
    await claim_one(store)
    again, is_new = await store.runs.create(new_run(**given), max_queued=0)
    assert (again.id, is_new, again.status) == (run.id, False, RunStatus.RUNNING)
    with pytest.raises(IdempotencyMismatch) as raised:
        await store.runs.create(new_run(idempotency_key="k", body_digest="other"), max_queued=10)
    assert raised.value.run_id == run.id
    await submit(store, project="another", **given)


async def test_one_idempotency_key_makes_one_run_even_at_once(store: Store, neighbour: Store) -> None:
    def ask(number: int) -> Any:
        asked = new_run(idempotency_key=f"k{number % 4}", body_digest="d")
        return (store, neighbour)[number % 3 == 0].runs.create(asked, max_queued=1000)

    answers = await asyncio.gather(*(ask(number) for number in range(64)))
    assert len({run.id for run, _ in answers}) == 4
    assert sum(is_new for _, is_new in answers) == 4


async def test_more_than_may_wait_are_refused_with_an_estimate(store: Store) -> None:
    await end_one(store)
    asked = [store.runs.create(new_run(), max_queued=3) for _ in range(9)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 6
    with pytest.raises(Overloaded, match="3 runs wait already") as raised:
        await store.runs.create(new_run(), max_queued=3)
    assert 1.0 <= raised.value.retry_after_seconds <= 300.0
    await claim_one(store)
    await store.runs.create(new_run(), max_queued=3)


async def test_the_backlog_is_judged_by_the_last_runs(store: Store) -> None:
    assert (await store.runs.backlog()).queue_eta_seconds is None
    await end_one(store)
    for _ in range(4):
        await submit(store)
    assert (await store.runs.backlog()).queue_eta_seconds == pytest.approx(4 * 0.0125)
    await store.runs.claim("worker", limit=2, lease_seconds=60)
    backlog = await store.runs.backlog()
    assert (backlog.num_queued, backlog.num_running) == (2, 2)
    assert backlog.queue_eta_seconds == pytest.approx(2 * 0.0125 / 2)


async def test_the_queue_position_counts_who_is_claimed_before(store: Store) -> None:
    first, second, third = [await submit(store) for _ in range(3)]
    assert await store.runs.queue_position(third.id) == 2
    await store.runs.cancel(second.id)
    assert await store.runs.queue_position(third.id) == 1
    claim = await claim_one(store)
    assert await store.runs.queue_position(first.id) is None
    assert await store.runs.queue_position(third.id) == 0
    await store.runs.release(claim)
    assert await store.runs.queue_position(first.id) == 0


async def test_pages_hold_every_run_once_newest_first(store: Store) -> None:
    submitted = [await submit(store) for _ in range(7)]
    pages, cursor = [], None
    while True:
        page, cursor = await store.runs.list(limit=3, cursor=cursor)
        pages.append([run.id for run in page])
        await submit(store)
        if cursor is None:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [run_id for page in pages for run_id in page] == [run.id for run in reversed(submitted)]


async def test_lists_are_filtered(store: Store) -> None:
    ended = await end_one(store, deployment="other")
    waiting = await submit(store, project="mine")

    async def found(**wanted: Any) -> list[str]:
        return [run.id for run in (await store.runs.list(**wanted))[0]]

    assert await found() == [waiting.id, ended.id]
    assert await found(project="mine") == [waiting.id]
    assert await found(deployment="other") == [ended.id]
    assert await found(project="default", status=RunStatus.SUCCEEDED) == [ended.id]
    assert await found(status=RunStatus.QUEUED) == [waiting.id]
    assert await found(created_after=ended.created_at) == [waiting.id]
    assert await found(created_before=waiting.created_at) == [ended.id]
    assert await found(created_before=ended.created_at) == []


@pytest.mark.parametrize(
    "cursor", ["", "%%%", "bm90IGEgY3Vyc29y", "é", "MS4wIDIgMw==", "bmFuIDE=", "MSA5ZTk=", "MSA" + "5OTk5" * 8]
)
async def test_a_garbled_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidFields) as raised:
        await store.runs.list(cursor=cursor)
    assert raised.value.fields[0].field == "cursor"


async def test_a_deleted_run_is_gone_with_all_that_was_its(store: Store) -> None:
    await submit(store, webhook_endpoint=HOOK)
    claim = await claim_one(store)
    picture = await draw(store, claim)
    with pytest.raises(Conflict):
        await store.runs.delete(claim.run.id)
    await store.runs.finish(claim, SUCCEEDED)
    await store.runs.delete(claim.run.id)
    with pytest.raises(NotFound):
        await store.runs.get(claim.run.id)
    with pytest.raises(NotFound):
        await store.images.read(picture.path)
    assert await store.events.after(claim.run.id) == []
    [delivery] = await store.deliveries.list()
    assert (delivery.status, delivery.reason) == (DeliveryStatus.FAILED, "the run was deleted")
    assert await store.deliveries.seconds_to_next() is None
    with pytest.raises(NotFound):
        await store.runs.delete(claim.run.id)


async def test_pruning_keeps_the_young_the_unended_and_those_still_to_be_told_of(store: Store) -> None:
    untold = await end_one(store, webhook_endpoint=HOOK)
    await submit(store)
    claim = await claim_one(store)
    picture = await draw(store, claim)
    await store.runs.finish(claim, SUCCEEDED)
    waiting = await submit(store)
    assert await store.runs.prune(older_than_seconds=60) == 0
    assert await store.runs.prune(older_than_seconds=-1) == 1
    assert {run.id for run in (await store.runs.list())[0]} == {untold.id, waiting.id}
    with pytest.raises(NotFound):
        await store.images.read(picture.path)


async def test_pruning_goes_on_until_all_is_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.store.retention.PRUNE_BATCH", 2)
    for _ in range(5):
        await store.runs.cancel((await submit(store)).id)
    assert await store.runs.prune(older_than_seconds=-1) == 5
