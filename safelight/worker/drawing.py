"""One claimed run through the engine: from what is still to draw to how it ended."""

from __future__ import annotations

import asyncio
import contextlib

from safelight.deployments import Deployment
from safelight.engine.events import (
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    CheckpointTaken,
    EncodedPrompt,
    EndEvent,
    ImageReady,
    PreviewReady,
    StepDone,
)
from safelight.engine.faults import ENGINE_LOST, ENGINE_STOPPED
from safelight.engine.host import EngineHost
from safelight.engine.tasks import Assignment
from safelight.errors import ModelError, Stopping
from safelight.runs import Claim, Outcome, RunError, RunStatus
from safelight.store import Store
from safelight.worker.held import Held
from safelight.worker.keeping import CheckpointKeeper, keep_picture, keep_preview, start_picture
from safelight.worker.models import Models, model_key

WATCH_WAIT_SECONDS = 3600.0


class Drawing:
    """Draws the runs that this worker holds."""

    def __init__(self, store: Store, engine: EngineHost, models: Models, checkpoints: CheckpointKeeper) -> None:
        self._store = store
        self._engine = engine
        self._models = models
        self._checkpoints = checkpoints

    async def draw(self, held: Held, stack: contextlib.AsyncExitStack) -> Outcome:
        """Draw the images that no earlier claim has finished; the model is held as long as `stack`.

        Raises LostClaim, TryLater, Stopping.
        """
        held.deployment = await self._models.deployment_of(held.claim.run)
        model = self._models.hold(held.deployment, wait_compiled=_wants_compiled(held.claim))
        held.waiting = asyncio.create_task(stack.enter_async_context(model))
        try:
            await held.waiting
        except ModelError as refusal:
            return held.outcome(RunStatus.FAILED, error=RunError("model_unavailable", refusal.message))
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            return held.outcome(RunStatus.CANCELLED)
        return await self._draw_missing(held, held.deployment)

    async def _draw_missing(self, held: Held, deployment: Deployment) -> Outcome:
        run = held.claim.run
        finished = {image.index for image in run.images}
        missing = tuple(index for index in range(run.params.num_images_per_prompt) if index not in finished)
        if not missing:
            return held.outcome(RunStatus.SUCCEEDED)
        held.provenance = self._engine.provenance
        checkpoint = await self._checkpoints.last(held.claim)
        key = model_key(deployment)
        assignment = Assignment(
            run.id,
            key,
            run.params,
            missing,
            checkpoint=checkpoint,
            picture=await start_picture(self._store, run),
            key_id=run.key_id,
            weight=run.weight,
            priority=run.priority,
            deadline_seconds=held.seconds_to_deadline(),
        )
        held.beside.append(asyncio.create_task(self._pass_on_watchers(run.id)))
        try:
            return await self._follow(held, assignment)
        finally:
            for task in held.beside:
                task.cancel()
            if held.has_preview:
                await self._store.previews.remove(run.id)

    async def _pass_on_watchers(self, run_id: str) -> None:
        """Whoever watches a run says so again and again: a hint may be lost, and nobody says that he is gone."""
        with self._store.notifications.listen(f"watch:{run_id}") as listener:
            while True:
                if await listener.wait(WATCH_WAIT_SECONDS):
                    self._engine.watch(run_id)

    async def _follow(self, held: Held, assignment: Assignment) -> Outcome:
        held.is_handed_in = True
        to_come = set(assignment.indices)
        async for event in self._engine.generate(assignment):
            if isinstance(event, EndEvent):
                held.device_ms = event.device_ms
            match event:
                case EncodedPrompt(warnings, backend):
                    held.warnings = warnings
                    held.note_backend(backend)
                    # This comes with the first step: earlier it would have the processor before that has.
                    held.beside.append(asyncio.create_task(self._store.images.prepare(held.claim.run.id)))
                case StepDone():
                    held.steps_done, held.steps_total = event.steps_done, event.steps_total
                    held.foresee(event.eta_seconds)
                    held.is_unreported = True
                case CheckpointTaken(checkpoint):
                    self._checkpoints.save(held, checkpoint)
                case PreviewReady():
                    await keep_preview(self._store, held, event.pixels)
                case ImageReady():
                    to_come.discard(event.index)
                    await keep_picture(self._store, held, event, is_last=not to_come)
                case AssignmentDone(run_time_ms):
                    return held.outcome(RunStatus.SUCCEEDED, run_time_ms)
                case AssignmentCancelled(run_time_ms):
                    return held.outcome(RunStatus.CANCELLED, run_time_ms)
                case AssignmentFailed(error, run_time_ms):
                    if error.code == ENGINE_STOPPED.code:
                        raise Stopping(error.message)
                    if error.code == ENGINE_LOST.code:
                        # This process ends; the next one queues the run again, and counts the attempt.
                        await asyncio.Future()
                    return held.outcome(RunStatus.FAILED, run_time_ms, error)
        raise AssertionError("the engine ended an assignment without an end event")


def _wants_compiled(claim: Claim) -> bool:
    """Whether a run waits for the networks that stay: one that an earlier claim began, most likely in these, and one
    that must come out bit by bit as another time. And no LoRA is put into networks that are being compiled."""
    return claim.fence > 1 or claim.run.params.deterministic or bool(claim.run.params.loras)


def _is_being_cancelled() -> bool:
    """Whether whoever draws is, and not only what it waits for."""
    this = asyncio.current_task()
    return this is not None and this.cancelling() > 0
