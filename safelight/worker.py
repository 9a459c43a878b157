"""The worker: claims runs, feeds the engine of one device, writes the results. The only place where store and engine meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safelight.config import WorkerSettings
from safelight.deployments import Deployment, DeploymentStatus
from safelight.engine.checkpoints import Checkpoint, pack, unpack
from safelight.engine.events import (
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    CheckpointTaken,
    EncodedPrompt,
    EndEvent,
    ImageReady,
    StepDone,
)
from safelight.engine.faults import ENGINE_STOPPED
from safelight.engine.host import EngineHost
from safelight.engine.tasks import Assignment, ModelSpec
from safelight.errors import LostClaim, ModelError, SafelightError, Stopping, TryLater
from safelight.pictures import PictureMetadata, encode_picture
from safelight.runs import Claim, ImageRecord, Outcome, Progress, Run, RunError, RunStatus
from safelight.store import ANY_ATTEMPTS, Store

log = logging.getLogger("safelight.worker")

LAST_CHECKPOINT_SECONDS = 2.0
"""How long a stop may wait for the step under way; where that is longer, the last regular checkpoint has to do."""


class EngineHung(Exception):
    """The engine has work and finished no step for too long: only a new process can help."""


@dataclass(slots=True)
class _Held:
    """A claimed run under way in this worker."""

    claim: Claim
    deployment: Deployment | None = None
    steps_done: int = 0
    steps_total: int = 0
    eta_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    unnamed: tuple[ImageRecord, ...] = ()
    is_unreported: bool = False
    device_ms: float = 0.0
    saving: asyncio.Task[None] | None = None

    def outcome(self, status: RunStatus, run_time_ms: float = 0.0, error: RunError | None = None) -> Outcome:
        return Outcome(
            status=status,
            run_time_ms=run_time_ms,
            error=error,
            warnings=self.warnings,
            images=self.unnamed,
            progress=self.progress(),
        )

    def progress(self) -> Progress:
        self.is_unreported = False
        return Progress(
            run_id=self.claim.run.id,
            fence=self.claim.fence,
            steps_done=self.steps_done,
            steps_total=self.steps_total,
            eta_seconds=self.eta_seconds,
        )


class Worker:
    """Owns the claims of one process. `worker_id` is stable over restarts, so that a successor knows what was left."""

    def __init__(
        self,
        store: Store,
        engine: EngineHost,
        settings: WorkerSettings,
        *,
        worker_id: str,
        find_weights: Callable[[str], Path],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._settings = settings
        self._worker_id = worker_id
        self._find_weights = find_weights
        self._now = now
        self._held: dict[str, _Held] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._deployments: dict[tuple[str, int], Deployment] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._is_stopping = False

    async def run(self) -> None:
        """Work until `stop` was called and the running images are done or given back. Raises EngineHung."""
        await self._engine.start()
        await self._store.runs.requeue_lost(max_attempts=self._settings.max_attempts, worker_id=self._worker_id)
        pulse = asyncio.create_task(self._pulse_for_ever())
        claims = asyncio.create_task(self._claim_for_ever())
        try:
            await asyncio.wait({pulse, claims}, return_when=asyncio.FIRST_COMPLETED)
            for task in (pulse, claims):
                if task.done():
                    task.result()
            await self._drain()
        finally:
            pulse.cancel()
            claims.cancel()
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
                if not await self._claim():
                    await listener.wait(self._settings.poll_seconds)

    async def _claim(self) -> bool:
        """Claim one run if the engine has room for it.

        A run on its last attempt is drawn alone: should it be what kills workers, it takes no other run with it.
        """
        if self._engine.num_free_images < 1 or any(self._is_last_attempt(held) for held in self._held.values()):
            return False
        attempts_below = max(1, self._settings.max_attempts - 1) if self._held else ANY_ATTEMPTS
        try:
            claims = await self._store.runs.claim(
                self._worker_id,
                limit=1,
                lease_seconds=self._settings.lease_seconds,
                crowded=self._crowded_keys(),
                attempts_below=attempts_below,
            )
        except TryLater as error:
            # What runs goes on: the database may be back before a lease is over.
            log.warning("nothing can be claimed for now", extra={"reason": error.message})
            return False
        for claim in claims:
            self._held[claim.run.id] = _Held(claim)
            task = asyncio.create_task(self._carry_out(self._held[claim.run.id]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return bool(claims)

    def _is_last_attempt(self, held: _Held) -> bool:
        return held.claim.run.num_attempts >= max(2, self._settings.max_attempts)

    def _crowded_keys(self) -> list[str]:
        """API keys with their share of the engine's room, counting one more key that may come.

        The engine is fair between the keys it has work of; a key whose runs all wait behind another's would get nothing.
        """
        held: Counter[str] = Counter()
        for each in self._held.values():
            held[each.claim.run.key_id or ""] += each.claim.run.params.num_images_per_prompt
        room = held.total() + self._engine.num_free_images
        return [key_id for key_id, num_images in held.items() if num_images * (len(held) + 1) >= room]

    async def _carry_out(self, held: _Held) -> None:
        """See a claimed run to its end. The border where whatever goes wrong with one run is caught."""
        claim = held.claim
        log.info("started", extra={"run_id": claim.run.id, "fence": claim.fence, "deployment": claim.run.deployment})
        try:
            outcome = replace(await self._draw(held), device_ms=held.device_ms)
            run = await self._store.runs.finish(claim, outcome)
            await self._forget_checkpoint(held)
            log.info("ended", extra={"run_id": run.id, "status": run.status, "run_time_ms": run.run_time_ms})
        except asyncio.CancelledError:
            await self._give_back(claim)
            raise
        except LostClaim:
            log.warning("the claim was lost; its result is thrown away", extra={"run_id": claim.run.id})
        except TryLater as error:
            # A full disk or a locked database is not the run's fault: it waits in the queue until there is room.
            log.error("given back", extra={"run_id": claim.run.id, "reason": error.message})
            await asyncio.sleep(min(error.retry_after_seconds, self._settings.poll_seconds))
            await self._give_back(claim)
        except SafelightError as error:
            await self._fail(held, error.code, error.message)
        except Exception as error:
            log.exception("unexpected failure", extra={"run_id": claim.run.id})
            await self._fail(held, "worker_error", f"the worker failed on this run: {type(error).__name__}")
        finally:
            self._engine.cancel(claim.run.id)
            del self._held[claim.run.id]
            self._store.notifications.publish("queue")

    async def _draw(self, held: _Held) -> Outcome:
        """Draw the images that no earlier claim has finished."""
        run = held.claim.run
        held.deployment = await self._deployment_of(run)
        try:
            await self._load(held.deployment)
        except ModelError as refusal:
            return held.outcome(RunStatus.FAILED, error=RunError("model_unavailable", refusal.message))
        finished = {image.index for image in run.images}
        missing = tuple(index for index in range(run.params.num_images_per_prompt) if index not in finished)
        if not missing:
            return held.outcome(RunStatus.SUCCEEDED)
        checkpoint = await self._last_checkpoint(held.claim)
        assignment = Assignment(
            run.id, _model_key(held.deployment), run.params, missing, checkpoint=checkpoint, key_id=run.key_id
        )
        async for event in self._engine.generate(assignment):
            if isinstance(event, EndEvent):
                held.device_ms = event.device_ms
            match event:
                case EncodedPrompt(warnings):
                    held.warnings = warnings
                case StepDone():
                    held.steps_done, held.steps_total = event.steps_done, event.steps_total
                    held.eta_seconds, held.is_unreported = event.eta_seconds, True
                case CheckpointTaken(checkpoint):
                    self._save(held, checkpoint)
                case ImageReady():
                    await self._keep(held, event, is_last=event.index == missing[-1])
                case AssignmentDone(run_time_ms):
                    return held.outcome(RunStatus.SUCCEEDED, run_time_ms)
                case AssignmentCancelled(run_time_ms):
                    return held.outcome(RunStatus.CANCELLED, run_time_ms)
                case AssignmentFailed(error, run_time_ms):
                    if error.code == ENGINE_STOPPED.code:
                        raise Stopping(error.message)
                    return held.outcome(RunStatus.FAILED, run_time_ms, error)
        raise AssertionError("the engine ended an assignment without an end event")

    async def _keep(self, held: _Held, event: ImageReady, *, is_last: bool) -> None:
        """Encode a picture off the loop, write it durably, and only then name it in the store.

        The last one is named by the transaction that ends the run: one commit less for whoever waits.
        """
        claim, deployment = held.claim, held.deployment
        assert deployment is not None
        params = claim.run.params
        metadata = PictureMetadata(params=params, seed=event.seed, model=deployment.model, revision=deployment.revision)
        data = await asyncio.to_thread(
            encode_picture, event.pixels, params.output_format, metadata if deployment.embed_metadata else None
        )
        stored = await self._store.images.write(claim.run.id, event.index, claim.fence, params.output_format, data)
        record = ImageRecord(
            index=event.index,
            seed=event.seed,
            output_format=params.output_format,
            path=stored.path,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
        )
        if is_last:
            held.unnamed = (record,)
        else:
            await self._store.runs.add_image(claim, record)

    async def _deployment_of(self, run: Run) -> Deployment:
        """A version never changes, so each is read once."""
        version = (run.deployment, run.deployment_version)
        if version not in self._deployments:
            self._deployments[version] = await self._store.deployments.get(*version)
        return self._deployments[version]

    async def _load(self, deployment: Deployment) -> None:
        """Wait until the engine has the deployment's model; the first caller loads it for all."""
        key = _model_key(deployment)
        if self._engine.is_loaded(key):
            return
        if key not in self._loads:
            self._loads[key] = asyncio.create_task(self._load_now(deployment, key))
            self._loads[key].add_done_callback(lambda _: self._loads.pop(key))
        await asyncio.shield(self._loads[key])

    async def _load_now(self, deployment: Deployment, key: str) -> None:
        async def report(status: DeploymentStatus, reason: str = "") -> None:
            await self._store.deployments.record_placement(
                self._worker_id, deployment.name, deployment.version, status, reason
            )

        await report(DeploymentStatus.STARTING)
        began = self._now()
        try:
            await self._engine.load(ModelSpec(key, self._find_weights(deployment.model)))
        except ModelError as error:
            log.error("a model cannot be loaded", extra={"deployment": deployment.name, "reason": error.message})
            await report(DeploymentStatus.FAILED, error.message)
            raise
        await report(DeploymentStatus.ACTIVE)
        log.info("model loaded", extra={"deployment": deployment.name, "seconds": round(self._now() - began, 2)})

    async def _pulse_for_ever(self) -> None:
        """Report progress, renew leases, and learn of cancels: one transaction for all runs held."""
        renewed_at = self._now()
        with self._store.notifications.listen("cancel") as listener:
            while True:
                is_cancel = await listener.wait(self._settings.progress_seconds)
                if self._engine.seconds_since_progress > self._settings.stall_seconds:
                    raise EngineHung(f"no step finished for {self._settings.stall_seconds:.0f} s")
                is_renewal = self._now() - renewed_at >= self._settings.heartbeat_seconds
                if is_cancel or is_renewal or any(held.is_unreported for held in self._held.values()):
                    is_renewal = await self._pulse(is_renewal)
                if is_renewal:
                    renewed_at = self._now()

    async def _pulse(self, is_renewal: bool) -> bool:
        """Whether leases were renewed."""
        progress = [held.progress() for held in self._held.values()]
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
            self._engine.cancel(run_id)
        return is_renewal

    async def _drain(self) -> None:
        if self._running:
            log.info("draining", extra={"runs": len(self._running)})
            await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
        # Before the cancel: a run that nobody reads any more is out of the engine at once.
        await asyncio.gather(*(self._save_last(held) for held in self._held.values()))
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _last_checkpoint(self, claim: Claim) -> Checkpoint | None:
        """Where an earlier claim of the run came to; a first claim has nothing to look for."""
        if claim.fence == 1:
            return None
        data = await self._store.checkpoints.newest(claim.run.id)
        return None if data is None else await asyncio.to_thread(unpack, data)

    def _save(self, held: _Held, checkpoint: Checkpoint) -> None:
        """Write it beside the drawing. While one is being written the next is let go: a newer one comes soon."""
        if held.saving is None or held.saving.done():
            held.saving = asyncio.create_task(self._write_checkpoint(held.claim, checkpoint))

    async def _write_checkpoint(self, claim: Claim, checkpoint: Checkpoint) -> None:
        try:
            data = await asyncio.to_thread(pack, checkpoint)
            await self._store.checkpoints.write(claim.run.id, claim.fence, data)
        except OSError as error:
            log.warning("a checkpoint cannot be written", extra={"run_id": claim.run.id, "reason": str(error)})

    async def _save_last(self, held: _Held) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_CHECKPOINT_SECONDS):
                if held.saving is not None:
                    await held.saving
                checkpoint = await self._engine.checkpoint(held.claim.run.id)
                if checkpoint is not None:
                    await self._write_checkpoint(held.claim, checkpoint)

    async def _forget_checkpoint(self, held: _Held) -> None:
        """The run has ended. Most have none, and cost nothing here."""
        if held.saving is not None:
            await held.saving
        if held.saving is not None or held.claim.fence > 1:
            await self._store.checkpoints.remove(held.claim.run.id)

    async def _give_back(self, claim: Claim) -> None:
        self._engine.cancel(claim.run.id)
        try:
            await self._store.runs.release(claim)
            log.info("given back", extra={"run_id": claim.run.id})
        except SafelightError as error:
            log.warning("could not be given back", extra={"run_id": claim.run.id, "reason": error.message})

    async def _fail(self, held: _Held, code: str, message: str) -> None:
        try:
            await self._store.runs.finish(held.claim, held.outcome(RunStatus.FAILED, error=RunError(code, message)))
            log.error("failed", extra={"run_id": held.claim.run.id, "code": code})
        except SafelightError as error:
            # The store is out of reach: the lease ends and the run is tried again, so nothing is lost.
            log.error("could not be ended", extra={"run_id": held.claim.run.id, "reason": error.message})


def _model_key(deployment: Deployment) -> str:
    return f"{deployment.name}@{deployment.version}"
