"""The step loop: cancelled out, choose, encode newcomers, predict, guide, sample, decode the finished. One thread."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from safelight.engine import faults
from safelight.engine.accounts import Accounts
from safelight.engine.beginnings import begin, encode_start
from safelight.engine.checkpoints import Checkpoint, Snapshot
from safelight.engine.costs import Costs
from safelight.engine.decoding import decode
from safelight.engine.events import (
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    CheckpointTaken,
    EncodedPrompt,
    EndEvent,
    EngineEvent,
    ImageReady,
)
from safelight.engine.memory import MemoryPlan, watch_peak
from safelight.engine.meter import Meter
from safelight.engine.models.base import Conditioning, ImageModel
from safelight.engine.models.placing import number_bytes_of
from safelight.engine.previews import Previews
from safelight.engine.progress import ProgressTeller
from safelight.engine.prompts import PromptCache, warnings_about
from safelight.engine.rows import Rows
from safelight.engine.samplers import step_table
from safelight.engine.scheduler import Scheduler
from safelight.engine.tasks import Assignment, Batch, BatchKey, ImageTask, LiveRun
from safelight.errors import ModelError
from safelight.metrics import EngineFigures
from safelight.runs import DEADLINE_MISSED, RunError, RunParams

log = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Draws assignments with loaded models, many at once. Not thread-safe: whoever made it calls it.

    Every submitted assignment ends with exactly one end event out of `step`. Steps are told of no more often than every
    `progress_seconds` (0: all of them), those that finish an image at once.
    """

    def __init__(
        self,
        *,
        max_resident_images: int = 16,
        max_batch_rows: int = 16,
        prompt_cache_size: int = 256,
        checkpoint_seconds: float | None = None,
        progress_seconds: float = 0.0,
        drawing_bytes: int | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._max_resident_images = max_resident_images
        self._checkpoint_seconds = checkpoint_seconds
        self._now = now
        self._models: dict[str, ImageModel] = {}
        self._prompts = PromptCache(prompt_cache_size)
        self._costs = Costs()
        self._scheduler = Scheduler(max_rows=max_batch_rows, costs=self._costs)
        self._progress = ProgressTeller(self._scheduler, self._costs, interval_seconds=progress_seconds)
        self._meter = Meter()
        self._accounts = Accounts(self._scheduler, self._costs, self._meter, now=now)
        self._memory = MemoryPlan(drawing_bytes)
        self._runs: dict[str, LiveRun] = {}
        self._finished: deque[ImageTask] = deque()
        self._is_decoders_turn = False
        self._snapshots: list[tuple[LiveRun, Snapshot]] = []
        self._previews = Previews()
        self._events: list[tuple[str, EngineEvent]] = []
        self._rows: Rows | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say anything."""
        return bool(self._runs or self._events)

    @property
    def num_free_images(self) -> int:
        """How many more images may be submitted."""
        return max(0, self._max_resident_images - self._num_images_under_way)

    @property
    def max_pixels(self) -> int | None:
        """Of the largest picture that the memory for drawing is planned to hold; None: no limit."""
        return self._memory.max_pixels

    @property
    def figures(self) -> EngineFigures:
        """What it has done so far."""
        return self._meter.figures(num_resident_images=self._num_images_under_way)

    @property
    def _num_images_under_way(self) -> int:
        # A copy: another thread may ask for the figures.
        return sum(run.num_images_left for run in list(self._runs.values()))

    def load(self, key: str, model: ImageModel) -> None:
        """Serve `model` as `key`. What is under way with another of that key ends with that one."""
        self._models[key] = model
        self._memory.expect(key, number_bytes_of(model))

    def is_loaded(self, key: str) -> bool:
        return key in self._models

    def unload(self, key: str) -> None:
        """Forget the model; its runs under way fail with `model_unloaded`. Unknown keys are ignored."""
        self._prompts.forget(key)
        self._memory.forget(key)
        self._previews.forget(key)
        # Runs that have ended would keep the model in memory.
        self._snapshots = [each for each in self._snapshots if each[0].assignment.model_key != key]
        self._rows = None
        self._accounts.settle()
        if (model := self._models.pop(key, None)) is not None:
            model.release()
        self._progress.forget()
        for run in list(self._runs.values()):
            if run.assignment.model_key == key:
                self._fail(run, faults.MODEL_UNLOADED)

    def release(self) -> bool:
        """Have all models give back the device memory of what they can make again; whether there was any."""
        return sum(model.release() for model in self._models.values()) > 0

    def submit(self, assignment: Assignment) -> None:
        """Take its images in. A model that is not loaded and a LoRA that cannot be read end in an AssignmentFailed."""
        assert assignment.run_id not in self._runs, "a run is submitted once"
        model = self._model_of(assignment)
        if isinstance(model, RunError):
            self._events.append((assignment.run_id, AssignmentFailed(model, 0.0)))
            return
        params = assignment.params
        table = step_table(
            params.sampler,
            params.num_inference_steps,
            model.schedule,
            params.spacing,
            num_skipped=params.num_skipped_steps,
        )
        num_earlier = params.num_images_per_prompt - len(assignment.indices)
        run = LiveRun(
            assignment,
            model,
            num_images_left=len(assignment.indices),
            steps_done=num_earlier * len(table),
            steps_total=params.num_images_per_prompt * len(table),
        )
        if assignment.deadline_seconds is not None:
            run.deadline_at = self._now() + assignment.deadline_seconds
        shape = model.latent_shape(params.height, params.width)
        num_windows = max(model.count_windows(text) for text in params.texts)
        backend = model.backend_of(shape, num_windows)
        key = BatchKey(assignment.model_key, shape, model.conditioning_shape, params.loras, num_windows, backend)
        if not self._make_room(key, params):
            self._events.append((run.run_id, AssignmentFailed(faults.OUT_OF_MEMORY, 0.0)))
            return
        for index in assignment.indices:
            task = ImageTask(run=run, index=index, seed=params.seed + index, key=key, table=table)
            if assignment.checkpoint is not None:
                assignment.checkpoint.take_up(task)
            run.tasks.append(task)
            run.steps_done += task.cursor
        # What failed before this has left nothing of the run behind.
        self._runs[run.run_id] = run
        for task in run.tasks:
            if task.num_steps_left:
                self._scheduler.admit(task)
            else:
                self._finished.append(task)
        self._end_if_done(run)

    def _model_of(self, assignment: Assignment) -> ImageModel | RunError:
        if (model := self._models.get(assignment.model_key)) is None:
            return faults.model_not_loaded(assignment.model_key)
        try:
            return model.adapted(assignment.params.loras) if assignment.params.loras else model
        except ModelError as error:
            return faults.lora_failed(error)

    def cancel(self, run_id: str) -> None:
        """Out before the next step. A run that is not under way is ignored: it has ended."""
        run = self._runs.get(run_id)
        if run is not None:
            # A step that a GPU has not done yet is the run's too.
            self._accounts.settle()
            self._end(run, AssignmentCancelled(run.run_time_ms, run.device_ms))

    def watch(self, run_id: str) -> None:
        """Somebody watches the run: for a while it has PreviewReady events. Unknown ids are ignored."""
        if run_id in self._runs:
            self._previews.watch(self._runs[run_id], self._now())

    def checkpoint(self, run_id: str) -> Checkpoint | None:
        """How far the run has come, for whoever gives it back; None where nothing has begun."""
        run = self._runs.get(run_id)
        has_begun = run is not None and any(task.cursor for task in run.tasks)
        return Snapshot(run.tasks).checkpoint() if run is not None and has_begun else None

    def fail_all(self, error: RunError) -> None:
        """Give every run under way up. A step that a GPU has not done yet is not waited for, and not in their times."""
        for run in list(self._runs.values()):
            self._fail(run, error)

    @torch.inference_mode()
    def step(self) -> list[tuple[str, EngineEvent]]:
        """One batch through the denoiser, or one picture through the decoder, in turns. What happened since."""
        if self._finished and (self._is_decoders_turn or not len(self._scheduler)):
            self._is_decoders_turn = False
            self._decode(self._finished.popleft())
        else:
            self._is_decoders_turn = True
            self._draw_next()
        self._hand_out_copies()
        return self.take_events()

    def _draw_next(self) -> None:
        chosen = self._scheduler.choose()
        batch = chosen and self._encode_newcomers(chosen)
        if batch is not None:
            self._draw(batch)

    def take_events(self) -> list[tuple[str, EngineEvent]]:
        """What happened since the last time, without a step."""
        events, self._events = self._events, []
        return events

    def _encode_newcomers(self, batch: Batch) -> Batch | None:
        """The batch without the runs whose prompts cannot be encoded; None when nobody is left."""
        for run in {task.run: None for task in batch.tasks if task.run.prompt is None}:
            # Encoding waits for the steps before it anyway: they are not in its time.
            self._accounts.settle()
            started = self._now()
            if run.is_too_late(started):
                self._fail(run, DEADLINE_MISSED)
                continue
            outcome = self._with_room(partial(self._encode, run))
            self._accounts.charge_alone(run, self._now() - started)
            if isinstance(outcome, RunError):
                self._fail(run, outcome)
            else:
                self._events.append((run.run_id, outcome))
        alive = tuple(task for task in batch.tasks if task.run.run_id in self._runs)
        return Batch(batch.key, alive) if alive else None

    def _with_room(self, work: Callable[[], T | RunError]) -> T | RunError:
        """What it gives; where it finds no memory, what it gives once models have released what they can."""
        outcome = work()
        return work() if outcome is faults.OUT_OF_MEMORY and self.release() else outcome

    def _encode(self, run: LiveRun) -> EncodedPrompt | RunError:
        params, model = run.assignment.params, run.model
        try:
            if params.is_guided:
                run.negative = self._encode_text(run, params.negative_prompt, is_negative=True)
            if run.assignment.picture is not None:
                run.start = encode_start(model, run.assignment.picture)
            run.prompt = self._encode_text(run, params.prompt)
        except Exception as error:
            log.exception("encoding failed", extra={"run_id": run.run_id})
            return faults.encode_failed(error)
        return EncodedPrompt(warnings_about(run), run.tasks[0].key.backend)

    def _encode_text(self, run: LiveRun, text: str, *, is_negative: bool = False) -> Conditioning:
        """Prompt and negative prompt are of one length: the shorter is filled up with empty windows."""
        key = run.tasks[0].key
        return self._prompts.encode(
            key.model_key, run.model, text, is_negative=is_negative, loras=key.loras, num_windows=key.num_windows
        )

    def _draw(self, batch: Batch) -> None:
        device = batch.tasks[0].run.model.device
        try:
            for task in batch.tasks:
                if not task.has_begun:
                    begin(task)
            with self._accounts.step(batch), watch_peak(device) as peak:
                rows = self._rows_of(batch)
                rows.advance()
        except Exception as error:
            self._contain(batch, error)
            return
        # A GPU has one step to do while the next is made ready, and no more: whoever cancels waits for those.
        self._accounts.settle(num_running=1)
        now = self._now()
        self._previews.begin(batch, rows.denoised, now)
        if peak.num_bytes is not None:
            self._memory.record(batch.key, batch.num_rows, peak.num_bytes)
            self._make_room(batch.key, batch.tasks[0].run.assignment.params)
        self._advance(batch, now)
        self._save(batch, now)

    def _make_room(self, key: BatchKey, params: RunParams) -> bool:
        """Whether an image of this shape has room; as many rows as do travel together from now on."""
        room = self._memory.max_rows(key, params.height * params.width)
        if room is not None:
            self._scheduler.limit_rows(key, max(1, room))
        return room is None or room >= (2 if params.is_guided else 1)

    def _rows_of(self, batch: Batch) -> Rows:
        if self._rows is None or self._rows.batch != batch:
            self._rows = Rows(batch)
        return self._rows

    def _advance(self, batch: Batch, now: float) -> None:
        num_finished = len(self._finished)
        for task in batch.tasks:
            task.is_suspect = False
            self._progress.note(task.run)
            if task.num_steps_left == 0:
                self._scheduler.remove(task)
                self._finished.append(task)
        if len(self._finished) > num_finished or self._progress.is_due(now):
            self._events += [(run.run_id, event) for run, event in self._progress.tell(now, self._finished)]

    def _save(self, batch: Batch, now: float) -> None:
        """Begin to take checkpoints of the runs whose last one is old enough; of a short run none is ever taken."""
        if self._checkpoint_seconds is None:
            return
        for run in {task.run: None for task in batch.tasks}:
            if run.saved_at is None:
                run.saved_at = now
            elif now - run.saved_at >= self._checkpoint_seconds:
                run.saved_at = now
                self._snapshots.append((run, Snapshot(run.tasks)))

    def _hand_out_copies(self) -> None:
        """Checkpoints and previews that have arrived on the host, of runs that are still there."""
        while self._snapshots and self._snapshots[0][1].is_ready:
            run, snapshot = self._snapshots.pop(0)
            self._tell(run, CheckpointTaken(snapshot.checkpoint()))
        for run, preview in self._previews.take_ready():
            self._tell(run, preview)

    def _tell(self, run: LiveRun, event: EngineEvent) -> None:
        if self._runs.get(run.run_id) is run:
            self._events.append((run.run_id, event))

    def _contain(self, batch: Batch, error: Exception) -> None:
        """Out of memory: again without what models can release, then smaller batches. Else each image of the batch
        alone, and who fails alone fails."""
        self._rows = None
        if faults.is_out_of_memory(error) and self.release():
            log.warning("no memory for %d rows of %s; models have released theirs", batch.num_rows, batch.key)
        elif len(batch.tasks) == 1:
            log.error("the denoiser failed", extra={"run_id": batch.tasks[0].run.run_id}, exc_info=error)
            self._fail(batch.tasks[0].run, faults.engine_failed(error))
        elif faults.is_out_of_memory(error):
            self._scheduler.halve_rows(batch)
            log.warning("no memory for %d rows of %s; halved", batch.num_rows, batch.key)
        else:
            log.warning("a batch of %d images failed; each is tried alone", len(batch.tasks), exc_info=error)
            for task in batch.tasks:
                task.is_suspect = True

    def _decode(self, task: ImageTask) -> None:
        run = task.run
        self._accounts.settle()
        started = self._now()
        picture = self._with_room(partial(decode, task))
        seconds = self._now() - started
        self._accounts.charge_alone(run, seconds)
        if isinstance(picture, RunError):
            self._fail(run, picture)
            return
        self._accounts.record_decode(task, seconds)
        run.num_images_left -= 1
        self._events.append((run.run_id, ImageReady(task.index, task.seed, picture)))
        self._end_if_done(run)

    def _end_if_done(self, run: LiveRun) -> None:
        if run.num_images_left == 0:
            self._end(run, AssignmentDone(run.run_time_ms, run.device_ms))

    def _fail(self, run: LiveRun, error: RunError) -> None:
        self._end(run, AssignmentFailed(error, run.run_time_ms, run.device_ms))

    def _end(self, run: LiveRun, event: EndEvent) -> None:
        """The one way out: with how far it came, where that was not told yet."""
        del self._runs[run.run_id]
        for task in run.tasks:
            self._scheduler.remove(task)
        self._finished = deque(task for task in self._finished if task.run is not run)
        self._events += [(run.run_id, each) for each in (*self._progress.last(run), event)]
