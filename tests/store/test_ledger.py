"""What keys have used, and what they may still use: counted from runs, whatever became of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from safelight.errors import InvalidFields, NotFound, Overloaded, RateLimited, TryLater
from safelight.keys import (
    DAY_SECONDS,
    MINUTE_SECONDS,
    Allowance,
    Key,
    Scope,
    Spending,
    seconds_to_room,
    standings,
)
from safelight.runs import Outcome, Run, RunParams, RunStatus
from safelight.store import Store, ledger, retention
from safelight.store.ledger import EXACT_SECONDS

from .making import claim_one, draw, new_run, submit

SMALL = RunParams(prompt="x", height=64, width=64, num_inference_steps=10, num_images_per_prompt=2)
"""81,920 pixel-steps."""


async def key_with(store: Store, name: str = "laptop", **allowance: Any) -> Key:
    key, _ = await store.keys.create(name, scopes=frozenset({Scope.PREDICT}), allowance=Allowance(**allowance))
    return key


async def ask(store: Store, key: Key, **given: Any) -> Run:
    return await submit(store, key_id=key.id, **({"params": SMALL} | given))


async def backdate(store: Store, *, seconds: float) -> None:
    """Make everything in the store older."""
    for table, column in (("runs", "created_at"), ("spent", "at")):
        sql = f"UPDATE {table} SET {column} = {column} - {seconds}"
        await store._database.write(lambda connection, sql=sql: connection.exec_driver_sql(sql))


async def test_requests_over_the_rate_are_refused_until_the_first_is_a_minute_old(store: Store) -> None:
    key = await key_with(store, requests_per_minute=3)
    await ask(store, key)
    await backdate(store, seconds=20)
    for _ in range(2):
        await ask(store, key)
    with pytest.raises(RateLimited, match="3 requests in a minute") as refused:
        await ask(store, key)
    assert 39 < refused.value.retry_after_seconds <= 40
    await backdate(store, seconds=40.1)
    await ask(store, key)
    with pytest.raises(RateLimited):
        await ask(store, key)


async def test_runs_of_before_a_clock_was_set_back_are_not_of_the_last_minute(store: Store) -> None:
    key = await key_with(store, requests_per_minute=1, images_per_day=2)
    await ask(store, key)
    await backdate(store, seconds=-7200)
    await ask(store, key)
    with pytest.raises(RateLimited):
        await ask(store, key)


async def test_pixel_steps_over_the_rate_wait_for_enough_of_them(store: Store) -> None:
    key = await key_with(store, pixel_steps_per_minute=4 * SMALL.pixel_steps)
    await ask(store, key)
    await backdate(store, seconds=30)
    for _ in range(3):
        await ask(store, key)
    with pytest.raises(RateLimited, match="pixel-steps") as refused:
        await ask(store, key)
    assert 29 < refused.value.retry_after_seconds <= 30
    with pytest.raises(RateLimited) as refused:
        await ask(store, key, params=replace(SMALL, num_images_per_prompt=4))
    assert 59 < refused.value.retry_after_seconds <= 60


async def test_a_days_images_come_back_at_midnight(store: Store) -> None:
    key = await key_with(store, images_per_day=4)
    for _ in range(2):
        await ask(store, key)
    with pytest.raises(RateLimited, match="4 images a day") as refused:
        await ask(store, key)
    assert refused.value.code == "quota_exhausted"
    to_midnight = DAY_SECONDS - time.time() % DAY_SECONDS
    assert abs(refused.value.retry_after_seconds - to_midnight) < 5
    await backdate(store, seconds=DAY_SECONDS)
    await ask(store, key)


async def test_queued_and_open_runs_are_capped(store: Store) -> None:
    key = await key_with(store, max_queued_runs=2, max_open_runs=3)
    for _ in range(2):
        await ask(store, key)
    with pytest.raises(Overloaded, match="2 runs of this key wait") as refused:
        await ask(store, key)
    assert refused.value.code == "too_many_runs" and refused.value.retry_after_seconds >= 1
    claims = [await claim_one(store) for _ in range(2)]
    await ask(store, key)
    with pytest.raises(Overloaded, match="3 runs of this key are open"):
        await ask(store, key)
    await store.runs.finish(claims[0], Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0))
    await ask(store, key)


async def test_other_keys_are_not_held_up(store: Store) -> None:
    full = await key_with(store, "full", requests_per_minute=1, max_queued_runs=1)
    other = await key_with(store, "other", requests_per_minute=1, max_queued_runs=1)
    await ask(store, full)
    await ask(store, other)
    await submit(store)
    with pytest.raises(TryLater):
        await ask(store, full)


async def test_deleting_runs_gives_nothing_back(store: Store) -> None:
    key = await key_with(store, images_per_day=4, requests_per_minute=2)
    for _ in range(2):
        await store.runs.delete((await ask(store, key)).id)
    with pytest.raises(RateLimited, match="2 requests"):
        await ask(store, key)
    await store.keys.allow(key.id, Allowance(images_per_day=4))
    with pytest.raises(RateLimited, match="4 images"):
        await ask(store, key)


async def test_the_same_request_again_under_its_idempotency_key_costs_nothing(store: Store) -> None:
    key = await key_with(store, requests_per_minute=1)
    marked = {"key_id": key.id, "idempotency_key": "once", "body_digest": "d"}
    first, _ = await store.runs.create(new_run(**marked), max_queued=10)
    assert await store.runs.create(new_run(**marked), max_queued=10) == (first, False)


async def test_runs_of_a_key_of_higher_priority_are_claimed_before_all_others(store: Store) -> None:
    usual = await submit(store)
    urgent = await ask(store, await key_with(store, priority=7))
    late = await submit(store)
    assert [await store.runs.queue_position(run.id) for run in (urgent, usual, late)] == [0, 1, 2]
    assert urgent.priority == 7
    claimed = [await store.runs.claim("w", limit=1, lease_seconds=60, crowded=crowded) for crowded in ([], [""], [])]
    assert [claim.run.id for [claim] in claimed] == [urgent.id, usual.id, late.id]
    with pytest.raises(InvalidFields, match="0 to 100"):
        await key_with(store, "other", priority=101)


async def test_a_rotated_key_shares_its_allowance_with_its_successor(store: Store) -> None:
    old = await key_with(store, requests_per_minute=2, weight=3.0)
    new, secret = await store.keys.rotate("laptop", overlap_seconds=60)
    assert (new.name, new.allowance) == ("laptop", old.allowance)
    assert (await ask(store, old)).weight == 3.0
    await ask(store, new)
    for key in (old, new):
        with pytest.raises(RateLimited):
            await ask(store, key)
    await store.keys.allow("laptop", Allowance(requests_per_minute=3))
    await ask(store, old)
    assert (await store.keys.authenticate(secret)).allowance.requests_per_minute == 3
    (usage,) = await store.ledger.usage(since=0)
    assert (usage.key_id, usage.num_runs) == (new.id, 3)


async def test_two_doors_together_let_no_more_through_than_one(store: Store, neighbour: Store) -> None:
    key = await key_with(store, requests_per_minute=10)
    doors = [store, neighbour] * 15
    answers = await asyncio.gather(*(ask(door, key) for door in doors), return_exceptions=True)
    assert sum(isinstance(answer, Run) for answer in answers) == 10
    assert all(isinstance(answer, Run | RateLimited) for answer in answers)


async def test_standings_say_what_is_left(store: Store) -> None:
    key = await key_with(store, requests_per_minute=5, images_per_day=10)
    assert await store.ledger.standings((await key_with(store, "free")).id) == ()
    before = {each.name: each for each in await store.ledger.standings(key.id)}
    assert (before["requests"].num_left, before["requests"].reset_seconds) == (5, MINUTE_SECONDS)
    await ask(store, key)
    await backdate(store, seconds=15)
    after = {each.name: each for each in await store.ledger.standings(key.id)}
    assert (after["requests"].num_left, after["images"].num_left) == (4, 8)
    assert 44 < after["requests"].reset_seconds <= 45


async def test_usage_stays_when_runs_are_deleted_and_pruned_and_days_go_by(store: Store) -> None:
    key = await key_with(store)
    runs = [await ask(store, key, deployment=name) for name in ("a", "a", "b")]
    await submit(store)
    for _ in range(3):
        claim = await claim_one(store)
        await draw(store, claim, 0)
        await store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=9.0, device_ms=1500.0))

    async def used() -> list[tuple[str, int, int, float]]:
        found = await store.ledger.usage(since=0)
        assert {each.key for each in found} == {"laptop"}
        return [(each.deployment, each.num_runs, each.num_images, each.device_seconds) for each in found]

    whole = [("a", 2, 2, 3.0), ("b", 1, 1, 1.5)]
    assert await used() == whole
    await store.runs.delete(runs[0].id)
    assert await used() == whole
    await backdate(store, seconds=EXACT_SECONDS + DAY_SECONDS)
    assert await store.runs.prune(older_than_seconds=-1) == 2
    assert await used() == whole
    days = await store._database.read(
        lambda connection: connection.exec_driver_sql("SELECT deployment, is_day, num_runs FROM spent").all()
    )
    assert sorted(map(tuple, days)) == [("a", 1, 2), ("b", 1, 1)], "one row for each day"
    assert await store.ledger.usage(since=time.time() - DAY_SECONDS) == []
    assert await store.ledger.usage(since=0, project="another") == []


async def test_however_many_runs_were_deleted_one_round_sums_them_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MERGE_BATCH", 2)
    key = await key_with(store)
    for deployment in "abcab":
        await store.runs.delete((await ask(store, key, deployment=deployment)).id)
    await backdate(store, seconds=EXACT_SECONDS + DAY_SECONDS)
    await store.runs.delete((await ask(store, key, deployment="a")).id)
    assert await store.runs.prune(older_than_seconds=60) == 0
    left = await store._database.read(
        lambda connection: connection.exec_driver_sql(
            "SELECT deployment, is_day, num_runs, num_images FROM spent"
        ).all()
    )
    assert sorted(map(tuple, left)) == [("a", 0, 1, 2), ("a", 1, 2, 4), ("b", 1, 2, 4), ("c", 1, 1, 2)]


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
async def test_two_doors_that_tidy_up_at_once_count_what_was_used_once(
    store: Store, neighbour: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await key_with(store)
    await ask(store, key)
    await store.runs.finish(await claim_one(store), Outcome(status=RunStatus.SUCCEEDED, run_time_ms=9.0))

    async def both(work: Callable[[Connection], object]) -> None:
        """Each has looked before either is done."""
        meeting = threading.Barrier(2)
        add = ledger._add

        def add_late(*given: Any, **options: Any) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(0.5)
            add(*given, **options)

        monkeypatch.setattr(ledger, "_add", add_late)
        await asyncio.gather(*(door._database.write(work) for door in (store, neighbour)))
        monkeypatch.setattr(ledger, "_add", add)

    async def num_used() -> int:
        return sum(usage.num_runs for usage in await store.ledger.usage(since=0))

    await both(lambda connection: retention.expire_runs(connection, -1.0))
    assert (await store.runs.list())[0] == []
    assert await num_used() == 1
    await backdate(store, seconds=EXACT_SECONDS + DAY_SECONDS)
    await both(ledger.merge_days)
    assert await num_used() == 1


@pytest.mark.parametrize(
    "wrong", [{"requests_per_minute": 0}, {"images_per_day": -1}, {"weight": 0.0}, {"weight": 1e9}]
)
async def test_an_allowance_out_of_bounds_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    key = await key_with(store)
    with pytest.raises(InvalidFields):
        await store.keys.allow(key.id, Allowance(**wrong))
    with pytest.raises(NotFound):
        await store.keys.allow("nobody", Allowance())


@given(
    amounts=st.lists(st.tuples(st.floats(0, 60), st.integers(1, 100)), min_size=1, max_size=20),
    to_free=st.integers(1, 300),
)
def test_the_wait_is_exactly_until_enough_is_a_minute_old(amounts: list[tuple[float, int]], to_free: int) -> None:
    uses = sorted(amounts)
    wait = seconds_to_room(uses, to_free=to_free, at=60.0)
    freed = sum(amount for used_at, amount in uses if used_at + MINUTE_SECONDS <= 60.0 + wait + 1e-9)
    assert freed >= min(to_free, sum(amount for _, amount in uses))
    assert 0 <= wait <= MINUTE_SECONDS


@given(st.integers(1, 100), st.integers(0, 200), st.floats(0, 1e9))
def test_no_standing_is_below_nothing(quota: int, spent: int, at: float) -> None:
    (standing,) = standings(Allowance(images_per_day=quota), Spending(at=at, num_images=spent))
    assert 0 <= standing.num_left <= quota and 0 <= standing.reset_seconds <= DAY_SECONDS
