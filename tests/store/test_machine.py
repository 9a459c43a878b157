"""The life of runs as a machine: Hypothesis walks it in every order, and a small model says what must hold."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
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

from .making import HOOK, kinds_of, new_run, progress_of

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


class LifeOfRuns(RuleBasedStateMachine):
    template: Path
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.runner = asyncio.Runner()
        self.expected: dict[str, Expected] = {}

        data = Path(shutil.copytree(self.template, self.folder / "data"))
        self.stores = [self.do(Store.open(data)) for _ in range(2)]

    def teardown(self) -> None:
        self.do(self.check_traces(self.store))
        for store in self.stores:
            self.do(store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    @property
    def store(self) -> Store:
        """One of two over the same file, by turns."""
        self.stores.reverse()
        return self.stores[0]

    def holds(self, claim: Claim) -> bool:
        run = self.expected[claim.run.id]
        return run.status is RunStatus.RUNNING and run.fence == claim.fence

    @rule(has_webhook=st.booleans())
    def submit(self, has_webhook: bool) -> None:
        new = new_run(webhook_endpoint=HOOK if has_webhook else None)
        self.do(self.store.runs.create(new, max_queued=100))
        self.expected[new.id] = Expected(has_webhook=has_webhook)

    @rule(target=claims, limit=st.integers(1, 3), is_lease_over=st.booleans())
    def claim(self, limit: int, is_lease_over: bool) -> Any:
        queued = [run_id for run_id, run in self.expected.items() if run.status is RunStatus.QUEUED]
        lease_seconds = -1.0 if is_lease_over else 600.0
        claimed = self.do(self.store.runs.claim("worker", limit=limit, lease_seconds=lease_seconds))
        assert [claim.run.id for claim in claimed] == queued[:limit]
        for claim in claimed:
            run = self.expected[claim.run.id]
            run.fence, run.num_attempts = run.fence + 1, run.num_attempts + 1
            run.is_lease_over = is_lease_over
            run.move(RunStatus.RUNNING, "started")
        return multiple(*claimed)

    @rule(claim=claims, renew=st.booleans())
    def pulse(self, claim: Claim, renew: bool) -> None:
        pulse = self.do(self.store.runs.pulse("worker", [progress_of(claim)], lease_seconds=600, renew=renew))
        run = self.expected[claim.run.id]
        assert bool(pulse.lost) is not self.holds(claim)
        assert bool(pulse.cancel_requested) is (self.holds(claim) and run.is_cancel_requested)
        run.is_lease_over = run.is_lease_over and not (renew and self.holds(claim))

    @rule(claim=claims, status=st.sampled_from(ENDS))
    def finish(self, claim: Claim, status: RunStatus) -> None:
        error = RunError("out_of_memory", "use a smaller side") if status is RunStatus.FAILED else None
        self.write(claim, self.store.runs.finish(claim, Outcome(status=status, run_time_ms=1.0, error=error)), status)

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        run = self.expected[claim.run.id]
        status = RunStatus.CANCELLED if run.is_cancel_requested else RunStatus.QUEUED
        run.num_attempts -= self.holds(claim) and status is RunStatus.QUEUED
        self.write(claim, self.store.runs.release(claim), status)

    def write(self, claim: Claim, work: Any, status: RunStatus) -> None:
        if self.holds(claim):
            self.do(work)
            kind = "requeued" if status is RunStatus.QUEUED else status.value
            self.expected[claim.run.id].move(status, kind)
        else:
            with pytest.raises(LostClaim):
                self.do(work)

    @rule(number=st.integers(0, 30))
    def cancel(self, number: int) -> None:
        if not self.kept:
            return
        run_id, run = list(self.kept.items())[number % len(self.kept)]
        self.do(self.store.runs.cancel(run_id))
        if run.status is RunStatus.QUEUED:
            run.move(RunStatus.CANCELLED, "cancelled")
        elif run.status is RunStatus.RUNNING:
            run.is_cancel_requested = True

    @rule()
    def requeue_lost(self) -> None:
        self.do(self.store.runs.requeue_lost(max_attempts=MAX_ATTEMPTS))
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
        assert self.do(self.store.runs.prune(older_than_seconds=-1)) == len(forgotten)
        for run in forgotten:
            run.is_kept = False

    @property
    def kept(self) -> dict[str, Expected]:
        return {run_id: run for run_id, run in self.expected.items() if run.is_kept}

    @invariant()
    def the_store_shows_what_is_expected(self) -> None:
        self.do(self.check(self.store))

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


def test_the_life_of_runs_in_every_order(migrated: Path) -> None:
    class Life(LifeOfRuns):
        template = migrated

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
