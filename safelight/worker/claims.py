"""The claims of one worker: takes runs, keeps their leases, ends them or gives them back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from safelight.config import WorkerSettings
from safelight.engine.host import EngineHost
from safelight.errors import LostClaim, SafelightError, TryLater
from safelight.garbage import collect_from_here
from safelight.runs import Claim, Outcome, Run, RunError, RunStatus
from safelight.store import ANY_ATTEMPTS, ANY_PRIORITY, Store
from safelight.tracing import OFF, Tracing
from safelight.worker.drawing import Drawing
from safelight.worker.held import Held
from safelight.worker.keeping import CheckpointKeeper
from safelight.worker.models import Models

log = logging.getLogger("safelight.worker")

CLAIM_PAUSE_SECONDS = 0.003
"""From one claim to the next: long enough to hand a run in, and nothing beside a step."""

URGENT_PAUSE_SECONDS = 0.05
"""How long a full worker leaves what is urgent to those that have room."""

LAST_CHECKPOINT_SECONDS = 2.0
"""How long a stop may wait for the step under way; where that is longer, the last regular checkpoint has to do."""


class EngineHung(Exception):
    """The engine has work and finished no step for too long: only a new process can help."""


def crowded_keys(held: Iterable[Run]) -> list[str]:
    """The API keys of the runs that are held (`""`: none), from least to most images for their weight.

    The engine is fair between the keys it has work of; a key whose runs all wait behind another's would get nothing.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    for run in held:
        shares[run.key_id or ""] += run.params.num_images_per_prompt / run.weight
    return sorted(shares, key=lambda key_id: shares[key_id])


class Worker:
    """Owns the claims of one process. `worker_id` is stable over restarts, so that a successor knows what was left."""

    def __init__(
        self,
        store: Store,
        engine: EngineHost,
        settings: WorkerSettings,
        *,
        worker_id: str,
        find_weights: Callable[..., Path],
        now: Callable[[], float] = time.monotonic,
        tracing: Tracing = OFF,
    ) -> None:
        self._store = store
        self._engine = engine
        self._settings = settings
        self._worker_id = worker_id
        self._now = now
        self._tracing = tracing
        self._checkpoints = CheckpointKeeper(store)
        self._models = Models(store, engine, worker_id=worker_id, find_weights=find_weights, now=now)
        self._drawing = Drawing(store, engine, self._models, self._checkpoints)
        self._held: dict[str, Held] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        """Work until `stop` was called and the running images are done or given back. Raises EngineHung."""
        await self._engine.start()
        collect_from_here()
        await self._store.runs.requeue_lost(max_attempts=self._settings.max_attempts, worker_id=self._worker_id)
        pulse = asyncio.create_task(self._pulse_for_ever())
        claims = asyncio.create_task(self._claim_for_ever())
        tidying = asyncio.create_task(self._models.tidy_for_ever())
        try:
            await asyncio.wait({pulse, claims, tidying}, return_when=asyncio.FIRST_COMPLETED)
            for task in (pulse, claims, tidying):
                if task.done():
                    task.result()
            draining = asyncio.create_task(self._drain())
            await asyncio.wait({pulse, draining}, return_when=asyncio.FIRST_COMPLETED)
            if pulse.done():
                # An engine that hangs, or is lost, will not finish what is waited for.
                draining.cancel()
                pulse.result()
            await draining
        finally:
            pulse.cancel()
            claims.cancel()
            tidying.cancel()
            # Placements end by themselves; why the worker stopped is more to know than that the store is away.
            with contextlib.suppress(TryLater):
                await self._store.deployments.forget_worker(self._worker_id)

    def stop(self) -> None:
        """Claim nothing more; go on with what runs for the drain time, then give it back."""
        self._is_stopping = True
        self._store.notifications.publish("queue")

    async def _claim_for_ever(self) -> None:
        with self._store.notifications.listen("queue") as listener:
            while not self._is_stopping:
                if claims := await self._claim():
                    # The new run is in the engine before the next claim, and a line in the log, compete with it.
                    await asyncio.sleep(CLAIM_PAUSE_SECONDS)
                    _log_started(claims)
                else:
                    await listener.wait(self._settings.poll_seconds)

    async def _claim(self) -> Sequence[Claim]:
        """Claim one run if the engine has room for it, or if it is more urgent than all that is held:
        that does not wait.

        A run on its last attempt is drawn alone: should it be what kills workers, it takes no other run with it.
        """
        if self._num_free_images < 1:
            # Another worker may have room for what is urgent.
            await asyncio.sleep(URGENT_PAUSE_SECONDS)
        if self._engine.is_lost:
            # The next process draws what waits; a claim by this one would cost the run an attempt.
            return ()
        has_room = self._num_free_images >= 1
        priorities = [held.claim.run.priority for held in self._held.values()]
        if not (has_room or priorities) or any(self._is_last_attempt(held) for held in self._held.values()):
            return ()
        attempts_below = max(1, self._settings.max_attempts - 1) if self._held else ANY_ATTEMPTS
        try:
            claims = await self._store.runs.claim(
                self._worker_id,
                limit=1,
                lease_seconds=self._settings.lease_seconds,
                crowded=crowded_keys(held.claim.run for held in self._held.values()),
                attempts_below=attempts_below,
                above_priority=ANY_PRIORITY if has_room else max(priorities),
            )
        except TryLater as error:
            # What runs goes on: the database may be back before a lease is over.
            log.warning("nothing can be claimed for now", extra={"reason": error.message})
            return ()
        for claim in claims:
            self._begin(claim)
        return claims

    def _begin(self, claim: Claim) -> None:
        before = self._held.get(claim.run.id)
        held = self._held[claim.run.id] = Held(claim)
        held.task = asyncio.create_task(self._carry_out(held, before))
        self._running.add(held.task)
        held.task.add_done_callback(self._running.discard)

    @property
    def _num_free_images(self) -> int:
        """Those of runs that wait for their model, or for a picture to begin from, count as if they were drawn."""
        waiting = (held.claim.run for held in self._held.values() if not held.is_handed_in)
        return self._engine.num_free_images - sum(run.params.num_images_per_prompt for run in waiting)

    def _is_last_attempt(self, held: Held) -> bool:
        return held.claim.run.num_attempts >= max(2, self._settings.max_attempts)

    async def _carry_out(self, held: Held, before: Held | None) -> None:
        """See a claimed run to its end. The border where whatever goes wrong with one run is caught.

        `before` is this worker's own claim of the same run, whose lease ran out while it was drawn.
        """
        claim = held.claim
        try:
            await _ended(before)
            end = await self._draw_and_finish(held)
            log.info("ended", extra={"run_id": claim.run.id, "status": end.status, "run_time_ms": end.run_time_ms})
        except asyncio.CancelledError:
            await self._give_back(held)
            raise
        except LostClaim:
            log.warning("the claim was lost; its result is thrown away", extra={"run_id": claim.run.id})
        except TryLater as error:
            # A full disk or a locked database is not the run's fault: it waits in the queue until there is room.
            log.error("given back", extra={"run_id": claim.run.id, "reason": error.message})
            try:
                await asyncio.sleep(min(error.retry_after_seconds, self._settings.poll_seconds))
            finally:
                await self._give_back(held)
        except SafelightError as error:
            await self._fail(held, error.code, error.message)
        except Exception as error:
            log.exception("unexpected failure", extra={"run_id": claim.run.id})
            await self._fail(held, "worker_error", f"the worker failed on this run: {type(error).__name__}")
        finally:
            if self._cancel(held):
                del self._held[claim.run.id]
            self._store.notifications.publish("queue")

    async def _draw_and_finish(self, held: Held) -> Outcome:
        run = held.claim.run
        traced: dict[str, str | int | float] = {"safelight.run_id": run.id, "safelight.deployment": run.deployment}
        traced |= {"safelight.fence": held.claim.fence, "safelight.attempt": run.num_attempts}
        with self._tracing.span("run", parent=run.traceparent, kind="consumer", attributes=traced) as span:
            # Whoever waits for the end need not wait until the model is given back too.
            async with contextlib.AsyncExitStack() as stack:
                with self._tracing.span("engine") as drawing:
                    outcome = replace(await self._drawing.draw(held, stack), device_ms=held.device_ms)
                    drawing.set({"safelight.device_ms": held.device_ms, "safelight.num_steps": held.steps_done})
                await self._store.runs.finish(held.claim, outcome)
            await self._checkpoints.forget(held)
            span.set({"safelight.status": outcome.status.value})
            if outcome.error is not None:
                span.fail(outcome.error.code)
            return outcome

    async def _pulse_for_ever(self) -> None:
        """Report progress, renew leases, and learn of cancels: one transaction for all runs held."""
        renewed_at = self._now()
        with self._store.notifications.listen("cancel") as listener:
            while True:
                is_cancel = await listener.wait(self._settings.progress_seconds)
                if self._engine.is_lost:
                    raise EngineHung("its thread has ended, or its device takes no more work")
                if self._engine.seconds_since_progress > self._settings.stall_seconds:
                    raise EngineHung(f"no step finished for {self._settings.stall_seconds:.0f} s")
                is_renewal = self._now() - renewed_at >= self._settings.heartbeat_seconds
                if is_cancel or is_renewal or any(held.is_unreported for held in self._held.values()):
                    is_renewal = await self._pulse(is_renewal)
                if is_renewal:
                    renewed_at = self._now()

    async def _pulse(self, is_renewal: bool) -> bool:
        """Whether leases were renewed."""
        reported = dict(self._held)
        progress = [held.progress() for held in reported.values()]
        try:
            pulse = await self._store.runs.pulse(
                self._worker_id,
                progress,
                lease_seconds=self._settings.lease_seconds,
                renew=is_renewal,
                figures=self._engine.figures if is_renewal else None,
            )
        except TryLater as error:
            log.warning("no progress can be written for now", extra={"reason": error.message})
            return False
        for run_id in pulse.cancel_requested | pulse.lost:
            if self._cancel(reported[run_id]):
                reported[run_id].stop_waiting()
        return is_renewal

    def _cancel(self, held: Held) -> bool:
        """Out of the engine; not where the run, which the engine knows by its id, is here under a newer
        claim by now."""
        is_newest = self._held.get(held.claim.run.id) is held
        if is_newest:
            self._engine.cancel(held.claim.run.id)
        return is_newest

    async def _drain(self) -> None:
        if self._running:
            log.info("draining", extra={"runs": len(self._running)})
            await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
        # Before the cancel: a run that nobody reads any more is out of the engine at once.
        await asyncio.gather(*(self._save_last(held) for held in self._held.values()))
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _save_last(self, held: Held) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_CHECKPOINT_SECONDS):
                if held.saving is not None:
                    await held.saving
                checkpoint = await self._engine.checkpoint(held.claim.run.id)
                if checkpoint is not None:
                    await self._checkpoints.write(held.claim, checkpoint)

    async def _give_back(self, held: Held) -> None:
        claim = held.claim
        if not self._cancel(held):
            # This worker itself has claimed the run again: there is nothing left to give.
            return
        try:
            await self._store.runs.release(claim)
            log.info("given back", extra={"run_id": claim.run.id})
        except SafelightError as error:
            log.warning("could not be given back", extra={"run_id": claim.run.id, "reason": error.message})

    async def _fail(self, held: Held, code: str, message: str) -> None:
        try:
            await self._store.runs.finish(held.claim, held.outcome(RunStatus.FAILED, error=RunError(code, message)))
            log.error("failed", extra={"run_id": held.claim.run.id, "code": code})
        except SafelightError as error:
            # The store is out of reach: the lease ends and the run is tried again, so nothing is lost.
            log.error("could not be ended", extra={"run_id": held.claim.run.id, "reason": error.message})


def _log_started(claims: Sequence[Claim]) -> None:
    for claim in claims:
        log.info("started", extra={"run_id": claim.run.id, "fence": claim.fence, "deployment": claim.run.deployment})


async def _ended(before: Held | None) -> None:
    """Stopped, so that nothing it still does is taken for the newer claim's."""
    if before is not None and before.task is not None:
        before.task.cancel()
        await asyncio.wait({before.task})
