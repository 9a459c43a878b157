"""Two processes over PostgreSQL that lock the same rows: one may wait for the other, but never each for each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, ExceptionContext

from safelight.keys import Allowance, Key, Scope
from safelight.runs import Delivery, DeliveryAttempt, RunStatus
from safelight.store import Store, claims, endpoints, ledger, queueing, retention, runs
from safelight.store.ledger import EXACT_SECONDS

from .making import SUCCEEDED, claim_one, end_one, new_run, on_postgresql, progress_of, submit

pytestmark = [on_postgresql, pytest.mark.usefixtures("kind")]

LIMITED = Allowance(requests_per_minute=100)


@pytest.fixture
def deadlocks(store: Store, neighbour: Store) -> list[object]:
    """The statements that the database has ended because each waited for the other."""
    found: list[object] = []

    def hear(context: ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlstate", None) == "40P01":
            found.append(context.statement)

    for each in (store, neighbour):
        sa.event.listen(each._database._engine, "handle_error", hear)
    return found


def meet_after(monkeypatch: pytest.MonkeyPatch, *places: tuple[Any, str]) -> None:
    """A writer that has done one of these for the first time waits until the other has, or must be held up by it."""
    meeting, have_met = threading.Barrier(2), set[int]()

    def do_and_meet(original: Callable[..., Any], *given: Any, **options: Any) -> Any:
        result = original(*given, **options)
        if threading.get_ident() not in have_met:
            have_met.add(threading.get_ident())
            with suppress(threading.BrokenBarrierError):
                meeting.wait(0.5)
        return result

    for module, name in places:
        monkeypatch.setattr(module, name, partial(do_and_meet, getattr(module, name)))


async def in_one_commit(store: Store, asked: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What comes of each; they arrive in this order."""
    has_begun, may_end = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        has_begun.set()
        assert may_end.wait(10)

    def wait_for(num_waiting: int) -> None:
        while store._database._writer._waiting.qsize() < num_waiting:
            time.sleep(0.001)

    before = asyncio.create_task(store._database.write(hold))
    await asyncio.to_thread(has_begun.wait)
    answers = []
    for each in asked:
        answers.append(asyncio.create_task(each))
        await asyncio.to_thread(wait_for, len(answers))
    may_end.set()
    await before
    return await asyncio.gather(*answers)


@pytest.fixture
def numbered_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count(1)
    monkeypatch.setattr("safelight.store.keys.uuid", SimpleNamespace(uuid4=lambda: next(numbers)))


async def key_named(store: Store, name: str) -> Key:
    key, _ = await store.keys.create(name, scopes=frozenset({Scope.PREDICT}), allowance=LIMITED)
    return key


@pytest.mark.usefixtures("numbered_keys")
@pytest.mark.parametrize(("first", "second"), [("12", "21"), ("32", "21"), ("23", "12"), ("213", "321")])
async def test_doors_whose_runs_are_of_the_same_keys_never_wait_for_each_other(
    store: Store,
    neighbour: Store,
    deadlocks: list[object],
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
) -> None:
    """Of the three keys the third was made from the first, and they share an allowance."""
    made = [await key_named(store, name) for name in ("one", "two")]
    made.append((await store.keys.rotate("one", overlap_seconds=60))[0])
    assert [key.id for key in made] == ["1", "2", "3"]
    meet_after(monkeypatch, (ledger, "_spending"))
    asked = [[new_run(key_id=key_id) for key_id in key_ids] for key_ids in (first, second)]
    doors = zip((store, neighbour), asked, strict=True)
    answers = await asyncio.gather(
        *(in_one_commit(door, [door.runs.create(new, max_queued=99) for new in news]) for door, news in doors)
    )
    assert [[run.id for run, _ in made] for made in answers] == [[new.id for new in news] for news in asked]
    assert deadlocks == []


async def test_doors_that_get_the_same_requests_again_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(door: Store, names: str) -> list[str]:
        news = [new_run(idempotency_key=name) for name in names]
        made = await in_one_commit(door, [door.runs.create(new, max_queued=99) for new in news])
        return [run.id for run, _ in made]

    meet_after(monkeypatch, (queueing, "_as_queued"))
    first, second = await asyncio.gather(create(store, "ab"), create(neighbour, "ba"))
    assert first == second[::-1] and len(set(first)) == 2
    assert deadlocks == []


async def test_doors_that_find_the_same_endpoints_dead_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        await store.webhook_endpoints.create(f"https://{name}.example/hook")
    for _ in range(2):
        await end_one(store)
    due = await store.deliveries.claim_due(limit=9, lease_seconds=60)
    ones, twos = ([each for each in due if name in each.url] for name in ("one", "two"))

    async def fail(door: Store, tried: Sequence[Delivery]) -> None:
        failed = DeliveryAttempt(number=1, at=1.0, duration_ms=2.0, status_code=500)
        asked = [
            door.deliveries.record(
                delivery,
                failed,
                retry_seconds=(0.0, 5.0),
                delivered=False,
                give_up=False,
                retry_after_seconds=None,
                disable_after_seconds=86400.0,
            )
            for delivery in tried
        ]
        recorded = await in_one_commit(door, asked)
        assert [(each.id, each.num_attempts) for each in recorded] == [(each.id, 1) for each in tried]

    meet_after(monkeypatch, (endpoints, "note"))
    await asyncio.gather(fail(store, [ones[0], twos[0]]), fail(neighbour, [twos[1], ones[1]]))
    assert deadlocks == []


async def test_a_worker_that_ends_runs_and_a_door_that_cancels_them_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await submit(store)
    one, two = [await claim_one(store) for _ in range(2)]
    meet_after(monkeypatch, (claims, "_end"), (runs, "_cancel"))
    await asyncio.gather(
        in_one_commit(store, [store.runs.finish(claim, SUCCEEDED) for claim in (one, two)]),
        in_one_commit(neighbour, [neighbour.runs.cancel(claim.run.id) for claim in (two, one)]),
    )
    for claim in (one, two):
        assert (await store.runs.get(claim.run.id)).status is RunStatus.SUCCEEDED
    assert deadlocks == []


async def test_a_worker_that_reports_and_a_door_that_cancels_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await submit(store)
    held = await store.runs.claim("worker", limit=2, lease_seconds=60)
    reports = [progress_of(claim) for claim in sorted(held, key=lambda claim: claim.run.id, reverse=True)]
    meet_after(monkeypatch, (claims, "add_hint"), (runs, "_cancel"))
    pulse, _ = await asyncio.gather(
        store.runs.pulse("worker", reports, lease_seconds=60, renew=True),
        in_one_commit(neighbour, [neighbour.runs.cancel(report.run_id) for report in reports[::-1]]),
    )
    assert pulse.lost == frozenset()
    assert deadlocks == []


async def test_a_worker_that_claims_and_a_door_that_cancels_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(store)
    held = await claim_one(store)
    queued = await submit(store)
    meet_after(monkeypatch, (claims, "claim"), (claims, "finish"), (runs, "_cancel"))
    (claimed, _), cancelled = await asyncio.gather(
        in_one_commit(
            store, [store.runs.claim("worker", limit=1, lease_seconds=60), store.runs.finish(held, SUCCEEDED)]
        ),
        in_one_commit(neighbour, [neighbour.runs.cancel(run_id) for run_id in (held.run.id, queued.id)]),
    )
    assert [run.id for run in cancelled] == [held.run.id, queued.id]
    assert (await store.runs.get(held.run.id)).status is RunStatus.SUCCEEDED
    assert (await store.runs.get(queued.id)).is_cancel_requested is bool(claimed)
    assert deadlocks == []


@pytest.mark.parametrize("what", ["runs that go", "days that are summed up"])
async def test_doors_that_tidy_up_never_wait_for_each_other(
    store: Store, neighbour: Store, deadlocks: list[object], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each has two rows for the same two sums, and comes upon them the other way round."""
    key = await key_named(store, "laptop")
    for deployment in ("a", "b", "b", "a"):
        run = await end_one(store, key_id=key.id, deployment=deployment)
        if what != "runs that go":
            await store.runs.delete(run.id)
    for table, column in (("runs", "created_at"), ("spent", "at")):
        age = f"UPDATE {table} SET {column} = {column} - {EXACT_SECONDS + 86400}"
        await store._database.write(lambda connection, age=age: connection.exec_driver_sql(age))
    monkeypatch.setattr(retention, "PRUNE_BATCH", 2)
    monkeypatch.setattr(ledger, "MERGE_BATCH", 2)
    meet_after(monkeypatch, (ledger, "_add"))
    work = partial(retention.expire_runs, older_than_seconds=-1.0) if what == "runs that go" else ledger.merge_days
    await asyncio.gather(*(door._database.write(work) for door in (store, neighbour)))
    days = await store._database.read(
        lambda connection: connection.exec_driver_sql("SELECT deployment, num_runs FROM spent ORDER BY 1").all()
    )
    assert [tuple(day) for day in days] == [("a", 2), ("b", 2)]
    assert deadlocks == []
