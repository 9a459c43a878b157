"""The life of a run under a claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safelight.errors import LostClaim
from safelight.runs import Outcome, Provenance, Pulse, RunError, RunStatus
from safelight.store import Store

from .making import HOOK, SUCCEEDED, claim_one, draw, end_one, finish, kinds_of, progress_of, submit, write_picture


async def test_the_oldest_queued_run_is_claimed_first(store: Store) -> None:
    submitted = [await submit(store) for _ in range(5)]
    first = await store.runs.claim("a", limit=3, lease_seconds=60)
    rest = await store.runs.claim("a", limit=3, lease_seconds=60)
    assert [claim.run.id for claim in first + rest] == [run.id for run in submitted]
    assert await store.runs.claim("a", limit=3, lease_seconds=60) == []


async def test_runs_of_a_crowded_key_are_claimed_after_all_others(store: Store) -> None:
    queued = {key_id: [(await submit(store, key_id=key_id)).id for _ in range(2)] for key_id in ("a", None, "b")}

    async def claimed(*crowded: str) -> str:
        [claim] = await store.runs.claim("w", limit=1, lease_seconds=60, crowded=crowded)
        return claim.run.id

    assert await claimed("a") == queued[None][0], "the oldest of another key"
    assert await claimed("a", "") == queued["b"][0]
    assert await claimed("a", "b", "") == queued["a"][0], "all are crowded: the least crowded"
    assert await claimed("b", "") == queued["a"][1]
    assert await claimed("") == queued["b"][1]
    assert await claimed("", "a") == queued[None][1], "nobody else is left"


async def test_a_claim_raises_fence_and_attempts_and_keeps_the_first_start(store: Store) -> None:
    run = await submit(store)
    first = await claim_one(store, lease_seconds=-1)
    assert (first.fence, first.run.num_attempts, first.run.status) == (1, 1, RunStatus.RUNNING)
    assert first.run.started_at is not None and first.run.started_at >= run.created_at
    await store.runs.requeue_lost(max_attempts=3)
    second = await claim_one(store)
    assert (second.fence, second.run.num_attempts) == (2, 2)
    assert second.run.started_at == first.run.started_at
    assert await kinds_of(store, run.id) == ["queued", "started", "requeued", "started"]


async def test_a_late_worker_cannot_write_to_a_requeued_run(store: Store) -> None:
    await submit(store)
    late = await claim_one(store, "late", lease_seconds=-1)
    await store.runs.requeue_lost(max_attempts=3)
    for write in (store.runs.finish(late, SUCCEEDED), store.runs.release(late), draw(store, late)):
        with pytest.raises(LostClaim):
            await write
    assert (await store.runs.pulse("late", [progress_of(late)], lease_seconds=60, renew=True)).lost == {late.run.id}
    assert (await store.runs.get(late.run.id)).status is RunStatus.QUEUED


async def test_a_late_worker_cannot_write_to_a_run_another_has(store: Store) -> None:
    await submit(store)
    late = await claim_one(store, "late", lease_seconds=-1)
    await store.runs.requeue_lost(max_attempts=3)
    holder = await claim_one(store, "holder")
    for write in (store.runs.finish(late, SUCCEEDED), store.runs.release(late), draw(store, late)):
        with pytest.raises(LostClaim):
            await write
    pulse = await store.runs.pulse("late", [progress_of(late, 40)], lease_seconds=-1, renew=True)
    assert pulse == Pulse(lost=frozenset({late.run.id}))
    assert await store.runs.requeue_lost(max_attempts=3) == []
    ended = await finish(store, holder, SUCCEEDED)
    assert (ended.steps_done, ended.fence, ended.images) == (0, 2, ())


async def test_a_run_ends_once(store: Store) -> None:
    await submit(store, webhook_endpoint=HOOK)
    claim = await claim_one(store)
    await store.runs.finish(claim, SUCCEEDED)
    with pytest.raises(LostClaim):
        await store.runs.finish(claim, Outcome(status=RunStatus.CANCELLED, run_time_ms=1.0))
    assert (await store.runs.get(claim.run.id)).status is RunStatus.SUCCEEDED
    assert len(await store.deliveries.list(run_id=claim.run.id)) == 1


async def test_a_finished_run_says_how_it_ended(store: Store) -> None:
    await submit(store)
    claim = await claim_one(store)
    failure = RunError("model_error", "the weights hold NaN \ud800\0")
    made = Provenance(safelight="1", torch="2", device="cpu", dtype="float32", num_threads=1)
    outcome = Outcome(
        status=RunStatus.FAILED, run_time_ms=7.0, error=failure, warnings=("the prompt was cut",), provenance=made
    )
    ended = await finish(store, claim, outcome)
    assert (ended.status, ended.run_time_ms, ended.warnings) == (RunStatus.FAILED, 7.0, ("the prompt was cut",))
    assert ended.provenance == made
    assert ended.error is not None and ended.error.code == "model_error"
    assert isinstance(ended.run_time_ms, float)
    [*_, last] = await store.events.after(claim.run.id)
    assert (last.kind.value, last.at, last.error) == ("failed", ended.ended_at, ended.error)


async def test_the_end_of_a_run_names_its_last_picture_in_the_same_moment(store: Store) -> None:
    run = await submit(store)
    late = await claim_one(store, lease_seconds=-1)
    picture = await write_picture(store, late)
    await store.runs.requeue_lost(max_attempts=3)
    with pytest.raises(LostClaim):
        await store.runs.finish(late, replace(SUCCEEDED, images=(picture,)))
    assert (await store.runs.get(run.id)).images == ()

    claim = await claim_one(store)
    picture = await write_picture(store, claim)
    ended = await finish(store, claim, replace(SUCCEEDED, images=(picture,)))
    assert ended.images == (picture,)
    assert (await kinds_of(store, run.id))[-2:] == ["image", "succeeded"]


async def test_the_end_of_a_run_says_how_far_it_came(store: Store) -> None:
    await submit(store)
    claim = await claim_one(store)
    ended = await finish(store, claim, replace(SUCCEEDED, progress=progress_of(claim, 50)))
    assert (ended.steps_done, ended.steps_total, ended.eta_seconds) == (50, 50, None)


async def test_a_pulse_writes_progress_and_renews_the_lease_when_asked(store: Store) -> None:
    run = await submit(store)
    claim = await claim_one(store, lease_seconds=-1)
    await store.runs.pulse("worker", [progress_of(claim, 7)], lease_seconds=60, renew=False)
    seen = await store.runs.get(run.id)
    assert (seen.steps_done, seen.steps_total, seen.eta_seconds) == (7, 50, 2.5)
    await store.runs.pulse("worker", [progress_of(claim, 8)], lease_seconds=60, renew=True)
    assert await store.runs.requeue_lost(max_attempts=3) == []
    await store.runs.pulse("worker", [progress_of(claim, 9)], lease_seconds=-1, renew=True)
    [requeued] = await store.runs.requeue_lost(max_attempts=3)
    assert (requeued.id, requeued.steps_done) == (run.id, 0)


async def test_a_pulse_tells_which_runs_to_stop_and_which_are_lost(store: Store) -> None:
    for _ in range(3):
        await submit(store)
    kept, cancelled, lost = await store.runs.claim("worker", limit=3, lease_seconds=60)
    await store.runs.cancel(cancelled.run.id)
    await store.runs.finish(lost, SUCCEEDED)
    reports = [progress_of(claim) for claim in (kept, cancelled, lost)]
    pulse = await store.runs.pulse("worker", reports, lease_seconds=60, renew=True)
    assert pulse == Pulse(frozenset({cancelled.run.id}), frozenset({lost.run.id}))


async def test_pictures_of_an_earlier_claim_come_with_the_next(store: Store) -> None:
    await submit(store)
    first = await claim_one(store, lease_seconds=-1)
    record = await draw(store, first)
    await store.runs.requeue_lost(max_attempts=3)
    second = await claim_one(store)
    assert second.run.images == (record,)
    ended = await finish(store, second, SUCCEEDED)
    assert ended.images == (record,)
    assert await kinds_of(store, ended.id) == ["queued", "started", "image", "requeued", "started", "succeeded"]


async def test_releasing_costs_no_attempt(store: Store) -> None:
    run = await submit(store)
    await store.runs.release(await claim_one(store))
    released = await store.runs.get(run.id)
    assert (released.status, released.num_attempts, released.fence) == (RunStatus.QUEUED, 0, 1)
    assert (await claim_one(store)).fence == 2


async def test_releasing_a_run_that_was_cancelled_ends_it(store: Store) -> None:
    run = await submit(store, webhook_endpoint=HOOK)
    claim = await claim_one(store)
    await store.runs.cancel(run.id)
    await store.runs.release(claim)
    assert (await store.runs.get(run.id)).status is RunStatus.CANCELLED
    assert len(await store.deliveries.list(run_id=run.id)) == 1


async def test_a_run_that_loses_every_worker_fails(store: Store) -> None:
    run = await submit(store, webhook_endpoint=HOOK)
    for expected in (RunStatus.QUEUED, RunStatus.QUEUED, RunStatus.FAILED):
        await claim_one(store, lease_seconds=-1)
        [taken_back] = await store.runs.requeue_lost(max_attempts=3)
        assert taken_back.status is expected
    assert taken_back.error is not None and taken_back.error.code == "worker_lost"
    assert [delivery.run_id for delivery in await store.deliveries.list()] == [run.id]


async def test_a_lost_run_that_was_cancelled_is_not_drawn_again(store: Store) -> None:
    run = await submit(store)
    await claim_one(store, lease_seconds=-1)
    await store.runs.cancel(run.id)
    [taken_back] = await store.runs.requeue_lost(max_attempts=3)
    assert taken_back.status is RunStatus.CANCELLED
    assert (await kinds_of(store, run.id))[-1] == "cancelled"


async def test_a_successor_takes_back_the_runs_of_its_own_worker_only(store: Store) -> None:
    for _ in range(2):
        await submit(store)
    mine = await claim_one(store, "mine")
    await claim_one(store, "other")
    taken_back = await store.runs.requeue_lost(max_attempts=3, worker_id="mine")
    assert [run.id for run in taken_back] == [mine.run.id]


async def test_cancelling_a_queued_run_ends_it_and_an_ended_run_stays(store: Store) -> None:
    run = await submit(store, webhook_endpoint=HOOK)
    cancelled = await store.runs.cancel(run.id)
    assert cancelled.status is RunStatus.CANCELLED and cancelled.ended_at is not None
    assert await store.runs.claim("worker", limit=1, lease_seconds=60) == []
    assert await store.runs.cancel(run.id) == cancelled
    assert len(await store.deliveries.list(run_id=run.id)) == 1
    ended = await end_one(store)
    assert await store.runs.cancel(ended.id) == ended


async def test_a_run_with_too_many_attempts_stays_first_in_the_queue(store: Store) -> None:
    suspect = await submit(store)
    for _ in range(2):
        await claim_one(store, lease_seconds=-1)
        await store.runs.requeue_lost(max_attempts=3)
    fresh = await submit(store)
    assert await store.runs.claim("busy", limit=1, lease_seconds=60, attempts_below=2) == []
    [claim] = await store.runs.claim("idle", limit=1, lease_seconds=60)
    assert (claim.run.id, claim.run.num_attempts) == (suspect.id, 3)
    [claim] = await store.runs.claim("busy", limit=1, lease_seconds=60, attempts_below=2)
    assert claim.run.id == fresh.id
