"""What a metrics scrape reads: each ended run once, the queue as it is, workers as they were last heard of."""

from __future__ import annotations

import json

import pytest

from safelight.metrics import EngineFigures
from safelight.runs import Outcome, RunError, RunStatus
from safelight.store import Store, measures

from .making import HOOK, claim_one, draw, end_one, submit


async def test_every_end_is_read_once_and_only_when_it_has_settled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await store.measures.read(since=None)
    assert first.ends == []
    for _ in range(3):
        await submit(store)
    claim = await claim_one(store)
    await draw(store, claim)
    await store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=5.0, device_ms=250.0))
    failed = Outcome(status=RunStatus.FAILED, run_time_ms=1.0, error=RunError("out_of_memory", "smaller"))
    await store.runs.finish(await claim_one(store), failed)
    assert (await store.measures.read(since=first.until)).ends == [], "not settled yet"
    monkeypatch.setattr(measures, "SETTLED_SECONDS", 0.0)
    second = await store.measures.read(since=first.until)
    assert [(end.status, end.code, end.num_images, end.device_seconds) for end in second.ends] == [
        (RunStatus.SUCCEEDED, "", 1, 0.25),
        (RunStatus.FAILED, "out_of_memory", 0, 0.0),
    ]
    assert all(0 <= (end.wait_seconds or 0) <= end.seconds for end in second.ends)
    assert (await store.measures.read(since=second.until)).ends == []


async def test_a_clock_that_was_set_back_has_no_run_counted_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SETTLED_SECONDS", 0.0)
    await end_one(store)
    seen = await store.measures.read(since=0.0)
    assert len(seen.ends) == 1
    monkeypatch.setattr(measures, "SETTLED_SECONDS", 3600.0)
    set_back = await store.measures.read(since=seen.until)
    assert (set_back.ends, set_back.until) == ([], seen.until)


@pytest.mark.parametrize(
    ("ended_at", "looks"),
    [
        ([1, 2, 3, 4, 5], [[1, 2, 3], [4, 5], []]),
        ([1, 2, 3], [[1, 2, 3], []]),
        ([1, 1, 2, 2, 2, 3], [[1, 1, 2, 2, 2], [3], []]),
        ([1, 1, 1, 1, 2], [[1, 1, 1, 1], [2], []]),
        ([1, 2, 3, 4, 4, 4, 4, 5, 5], [[1, 2, 3], [4, 4, 4, 4], [5, 5], []]),
    ],
)
async def test_what_ended_while_nobody_looked_is_read_bit_by_bit(
    store: Store, monkeypatch: pytest.MonkeyPatch, ended_at: list[int], looks: list[list[int]]
) -> None:
    monkeypatch.setattr(measures, "MAX_ENDS", 3)
    since = (await store.measures.read(since=None)).until - 100.0
    for then in ended_at:
        run = await end_one(store)
        sql = f"UPDATE runs SET created_at = 0, ended_at = {since + then} WHERE id = '{run.id}'"
        await store._database.write(lambda connection, sql=sql: connection.exec_driver_sql(sql))
    found, until = [], since
    for _ in looks:
        read = await store.measures.read(since=until)
        found.append(sorted(round(end.seconds - since) for end in read.ends))
        until = read.until
    assert found == looks
    assert until > since + 90


async def test_the_queue_is_counted_by_deployment_with_its_age(store: Store) -> None:
    for name in ("a", "a", "b"):
        await submit(store, deployment=name, webhook_endpoint=HOOK)
    await claim_one(store)
    backlogs = {each.deployment: each for each in (await store.measures.read(since=None)).backlogs}
    assert (backlogs["a"].num_queued, backlogs["a"].num_running) == (1, 1)
    assert (backlogs["b"].num_queued, backlogs["b"].num_running) == (1, 0)
    assert 0 <= backlogs["b"].oldest_queued_seconds < 5


async def test_figures_travel_with_the_pulse_and_go_with_the_worker(store: Store, neighbour: Store) -> None:
    said = EngineFigures(num_rows=7, step_seconds=1.5, step_counts=(1, 2, *[0] * 11))
    for figures in (EngineFigures(), said):
        await store.runs.pulse("w", [], lease_seconds=60, renew=True, figures=figures)
    (worker,) = (await neighbour.measures.read(since=None)).workers
    assert (worker.worker_id, worker.engine) == ("w", said)
    assert 0 <= worker.silent_seconds < 5
    await store.deployments.forget_worker("w")
    assert (await neighbour.measures.read(since=None)).workers == []


async def test_workers_that_fell_silent_long_ago_leave_no_rows(store: Store) -> None:
    await store.runs.pulse("killed", [], lease_seconds=60, renew=True, figures=EngineFigures())
    await store._database.write(lambda connection: connection.exec_driver_sql("UPDATE workers SET heard_at = 1"))
    await store.runs.pulse("next", [], lease_seconds=60, renew=True, figures=EngineFigures())
    sql = "SELECT worker_id FROM workers"
    assert await store._database.read(lambda connection: connection.exec_driver_sql(sql).scalars().all()) == ["next"]


async def test_figures_of_another_version_are_read_as_far_as_they_are_known(store: Store) -> None:
    await store.runs.pulse("w", [], lease_seconds=60, renew=True, figures=EngineFigures())
    text = json.dumps({"num_rows": 3, "of_the_future": 1})
    sql = f"UPDATE workers SET figures = '{text}'"
    await store._database.write(lambda connection: connection.exec_driver_sql(sql))
    (worker,) = (await store.measures.read(since=None)).workers
    assert worker.engine == EngineFigures(num_rows=3)


async def test_deliveries_that_wait_are_counted(store: Store) -> None:
    await submit(store, webhook_endpoint=HOOK)
    await store.runs.finish(await claim_one(store), Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0))
    read = await store.measures.read(since=None)
    assert read.num_pending_deliveries == 1 and 0 <= read.overdue_seconds < 5
