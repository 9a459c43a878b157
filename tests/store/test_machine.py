"""The life of runs as a machine: Hypothesis walks it in every order, and a small model says what must hold.

The same steps are taken on SQLite and on PostgreSQL side by side: both must do as the model says, so their traces are
the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from safelight.errors import LostClaim
from safelight.runs import Claim, Outcome, RunError, RunStatus
from safelight.store import Store
from safelight.store.schema import metadata
from tests.postgres import Postgres, find_programs

from .conftest import copied
from .making import HOOK, Place, kinds_of, new_run, progress_of

MAX_ATTEMPTS = 2
MEMORY = Path("/dev/shm")
"""Hundreds of commits, and none of them has to survive."""

ENDS = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)


@dataclass
class Expected:
    """What a run must look like."""

    status: RunStatus = RunStatus.QUEUED
    fence: int = 0
    num_attempts: int = 0
    is_cancel_requested: bool = False
    is_lease_over: bool = False
    has_webhook: bool = False
    is_kept: bool = True
    kinds: list[str] = field(default_factory=lambda: ["queued"])

    def move(self, status: RunStatus, kind: str) -> None:
        self.status = status
        self.kinds.append(kind)


class Sides:
    """For each database two stores over it, that take turns. Opened once: a walk begins with empty tables."""

    def __init__(self, *places: Place) -> None:
        self._loop = asyncio.new_event_loop()
        self._sides = [[self.do(place.open()) for _ in range(2)] for place in places]

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def each(self, ask: Callable[..., Coroutine[Any, Any, Any]], *given: list[Any]) -> list[Any]:
        """What each side answers or raises; each of `given` has something of its own for every side."""
        for side in self._sides:
            side.reverse()
        asked = [ask(side[0], *its) for side, *its in zip(self._sides, *given, strict=True)]
        return list(self.do(_all_ended(asked)))

    def close(self) -> None:
        for side in self._sides:
            for store in side:
                self.do(store.close())
        self._loop.close()


async def _all_ended(asked: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*asked, return_exceptions=True)


async def _empty(store: Store) -> None:
    def delete(connection: sa.Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))

    await store._database.write(delete)


class LifeOfRuns(RuleBasedStateMachine):
    sides: Sides
    claims: Bundle[list[Claim]] = Bundle("claims")
    """Of one run: its claim on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, Expected] = {}
        self.each(_empty)

    def teardown(self) -> None:
        self.each(self.check_traces)

    def each(self, ask: Callable[[Store], Coroutine[Any, Any, Any]]) -> list[Any]:
        """What each side answers."""
        answers = self.sides.each(ask)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def holds(self, claim: list[Claim]) -> bool:
        run = self.expected[claim[0].run.id]
        return run.status is RunStatus.RUNNING and run.fence == claim[0].fence

    @rule(has_webhook=st.booleans())
    def submit(self, has_webhook: bool) -> None:
        new = new_run(webhook_endpoint=HOOK if has_webhook else None)
        self.each(lambda store: store.runs.create(new, max_queued=100))
        self.expected[new.id] = Expected(has_webhook=has_webhook)

    @rule(target=claims, limit=st.integers(1, 3), is_lease_over=st.booleans())
    def claim(self, limit: int, is_lease_over: bool) -> Any:
        queued = [run_id for run_id, run in self.expected.items() if run.status is RunStatus.QUEUED]
        lease_seconds = -1.0 if is_lease_over else 600.0
        sides = self.each(lambda store: store.runs.claim("worker", limit=limit, lease_seconds=lease_seconds))
        for claimed in sides:
            assert [claim.run.id for claim in claimed] == queued[:limit]
        for run_id in queued[:limit]:
            run = self.expected[run_id]
            run.fence, run.num_attempts = run.fence + 1, run.num_attempts + 1
            run.is_lease_over = is_lease_over
            run.move(RunStatus.RUNNING, "started")
        return multiple(*(list(claim) for claim in zip(*sides, strict=True)))

    @rule(claim=claims, renew=st.booleans())
    def pulse(self, claim: list[Claim], renew: bool) -> None:
        progress = [progress_of(claim[0])]
        run = self.expected[claim[0].run.id]
        for pulse in self.each(lambda store: store.runs.pulse("worker", progress, lease_seconds=600, renew=renew)):
            assert bool(pulse.lost) is not self.holds(claim)
            assert bool(pulse.cancel_requested) is (self.holds(claim) and run.is_cancel_requested)
        run.is_lease_over = run.is_lease_over and not (renew and self.holds(claim))

    @rule(claim=claims, status=st.sampled_from(ENDS))
    def finish(self, claim: list[Claim], status: RunStatus) -> None:
        error = RunError("out_of_memory", "use a smaller side") if status is RunStatus.FAILED else None
        outcome = Outcome(status=status, run_time_ms=1.0, error=error)
        self.write(claim, lambda store, mine: store.runs.finish(mine, outcome), status)

    @rule(claim=consumes(claims))
    def release(self, claim: list[Claim]) -> None:
        run = self.expected[claim[0].run.id]
        status = RunStatus.CANCELLED if run.is_cancel_requested else RunStatus.QUEUED
        run.num_attempts -= self.holds(claim) and status is RunStatus.QUEUED
        self.write(claim, lambda store, mine: store.runs.release(mine), status)

    def write(
        self, claim: list[Claim], work: Callable[[Store, Claim], Coroutine[Any, Any, Any]], status: RunStatus
    ) -> None:
        answers = self.sides.each(work, claim)
        if not self.holds(claim):
            assert [type(answer) for answer in answers] == [LostClaim] * len(claim)
            return
        assert [answer for answer in answers if isinstance(answer, BaseException)] == []
        kind = "requeued" if status is RunStatus.QUEUED else status.value
        self.expected[claim[0].run.id].move(status, kind)

    @rule(number=st.integers(0, 30))
    def cancel(self, number: int) -> None:
        if not self.kept:
            return
        run_id, run = list(self.kept.items())[number % len(self.kept)]
        self.each(lambda store: store.runs.cancel(run_id))
        if run.status is RunStatus.QUEUED:
            run.move(RunStatus.CANCELLED, "cancelled")
        elif run.status is RunStatus.RUNNING:
            run.is_cancel_requested = True

    @rule()
    def requeue_lost(self) -> None:
        self.each(lambda store: store.runs.requeue_lost(max_attempts=MAX_ATTEMPTS))
        for run in self.expected.values():
            if run.status is RunStatus.RUNNING and run.is_lease_over:
                if run.is_cancel_requested:
                    run.move(RunStatus.CANCELLED, "cancelled")
                elif run.num_attempts >= MAX_ATTEMPTS:
                    run.move(RunStatus.FAILED, "failed")
                else:
                    run.move(RunStatus.QUEUED, "requeued")

    @rule()
    def prune(self) -> None:
        forgotten = [run for run in self.kept.values() if run.status.has_ended and not run.has_webhook]
        pruned = self.each(lambda store: store.runs.prune(older_than_seconds=-1))
        assert set(pruned) == {len(forgotten)}
        for run in forgotten:
            run.is_kept = False

    @property
    def kept(self) -> dict[str, Expected]:
        return {run_id: run for run_id, run in self.expected.items() if run.is_kept}

    @invariant()
    def the_store_shows_what_is_expected(self) -> None:
        self.each(self.check)

    async def check(self, store: Store) -> None:
        shown = {run.id: run for run in (await store.runs.list(limit=1000))[0]}
        assert shown.keys() == self.kept.keys()
        for run_id, run in self.kept.items():
            seen = shown[run_id]
            assert (seen.status, seen.fence, seen.num_attempts) == (run.status, run.fence, run.num_attempts)
            assert seen.is_cancel_requested == run.is_cancel_requested
            assert (seen.ended_at is not None) is seen.status.has_ended
            assert (seen.error is not None) is (seen.status is RunStatus.FAILED)

    async def check_traces(self, store: Store) -> None:
        for run_id, run in self.kept.items():
            assert await kinds_of(store, run_id) == run.kinds
        told = [delivery.run_id for delivery in await store.deliveries.list(limit=1000)]
        assert sorted(told) == sorted(id_ for id_, run in self.kept.items() if run.has_webhook and run.status.has_ended)


def walk(template: Path, server: Postgres | None, *, num_walks: int, num_steps: int, first: int | None = None) -> None:
    """Raises what a walk found wrong, with the shortest one that does. `first` is a seed: the same one,
    the same walks."""
    with contextlib.ExitStack() as leaving:
        data = Path(leaving.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)))
        places = [Place(Path(shutil.copytree(template, data / "sqlite")))]
        if server is not None:
            places.append(Place(data / "postgresql", leaving.enter_context(copied(server))))
        sides = leaving.enter_context(contextlib.closing(Sides(*places)))
        life = type("Life", (LifeOfRuns,), {"sides": sides})
        run_state_machine_as_test(
            life if first is None else seed(first)(life),
            settings=settings(
                max_examples=num_walks,
                stateful_step_count=num_steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_life_of_runs_in_every_order_on_both_databases(migrated: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("migrated_postgres") if find_programs() else None
    walk(migrated, server, num_walks=8, num_steps=20)
