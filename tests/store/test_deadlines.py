"""Deadlines: what cannot be done in time is refused, what waits too long is ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safelight.errors import DeadlineUnreachable, InvalidFields
from safelight.runs import Outcome, Run, RunParams, RunStatus
from safelight.store import Store

from .making import claim_one, finish, kinds_of, new_run, submit

PARAMS = RunParams(prompt="x", height=64, width=64, num_inference_steps=10)


async def end_after(store: Store, run_time_ms: float, params: RunParams = PARAMS) -> Run:
    await submit(store, params=params)
    return await finish(store, await claim_one(store), Outcome(status=RunStatus.SUCCEEDED, run_time_ms=run_time_ms))


async def test_a_deadline_is_kept_on_the_clock_of_the_database(store: Store) -> None:
    run = await submit(store, deadline_ms=2500)
    assert run.deadline_at == pytest.approx(run.created_at + 2.5)
    assert (await store.runs.get(run.id)).deadline_at == run.deadline_at
    assert (await submit(store)).deadline_at is None


async def test_a_deadline_of_an_unknown_deployment_is_taken(store: Store) -> None:
    await end_after(store, 9000.0)
    await submit(store, deployment="another", deadline_ms=1)


async def test_a_deadline_below_what_an_idle_server_takes_is_wrong(store: Store) -> None:
    await end_after(store, 1000.0)
    await end_after(store, 3000.0)
    with pytest.raises(InvalidFields, match="deadline_ms: 999 is less than the 1000 ms"):
        await submit(store, params=PARAMS, deadline_ms=999)
    twice = replace(PARAMS, num_inference_steps=20)
    with pytest.raises(InvalidFields, match="2000 ms"):
        await submit(store, params=twice, deadline_ms=1500)
    await submit(store, params=PARAMS, deadline_ms=2000)
    assert len((await store.runs.list(status=RunStatus.QUEUED))[0]) == 1, "what was refused is not stored"


async def test_a_deadline_that_the_queue_does_not_leave_room_for_is_refused_for_now(store: Store) -> None:
    await end_after(store, 1000.0)
    for _ in range(4):
        await submit(store, params=PARAMS)
    with pytest.raises(DeadlineUnreachable, match="done in 5000 ms, not in 2000 ms") as refused:
        await submit(store, params=PARAMS, deadline_ms=2000)
    assert refused.value.retry_after_seconds == pytest.approx(3.0)
    await submit(store, params=PARAMS, deadline_ms=5000)


async def test_a_run_found_by_its_idempotency_key_is_not_judged_again(store: Store) -> None:
    given = {"params": PARAMS, "deadline_ms": 500, "idempotency_key": "k", "body_digest": "d"}
    first = await submit(store, **given)
    await end_after(store, 9000.0)
    run, is_new = await store.runs.create(new_run(**given), max_queued=10)
    assert (run.id, is_new) == (first.id, False)


async def test_a_run_that_waits_past_its_deadline_ends_and_no_other(store: Store) -> None:
    late = await submit(store, deadline_ms=1)
    others = [await submit(store), await submit(store, deadline_ms=60_000)]
    running = await submit(store, deadline_ms=60_000)
    await store._database.write(
        lambda connection: connection.exec_driver_sql("UPDATE runs SET deadline_at = deadline_at - 1 WHERE TRUE")
    )
    [ended] = await store.runs.end_overdue()
    assert (ended.id, ended.status) == (late.id, RunStatus.FAILED)
    assert ended.error is not None and ended.error.code == "deadline_missed"
    assert await kinds_of(store, late.id) == ["queued", "failed"]
    assert await store.runs.end_overdue() == []
    assert {(await store.runs.get(run.id)).status for run in [*others, running]} == {RunStatus.QUEUED}


async def test_a_run_that_has_begun_goes_on_however_late_it_is(store: Store) -> None:
    run = await submit(store, deadline_ms=1)
    await store.runs.release(await claim_one(store))
    await store._database.write(
        lambda connection: connection.exec_driver_sql("UPDATE runs SET deadline_at = deadline_at - 1 WHERE TRUE")
    )
    assert await store.runs.end_overdue() == []
    assert (await claim_one(store)).run.id == run.id
