"""The engine's thread behind an async face: what its loop and the event loop say to each other goes through here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from safelight.config import EngineSettings
from safelight.engine import faults
from safelight.engine.budget import device_bytes, drawing_bytes, host_bytes
from safelight.engine.checkpoints import Checkpoint
from safelight.engine.engine import Engine
from safelight.engine.events import (
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    EngineEvent,
    ImageReady,
)
from safelight.engine.models.base import ImageModel
from safelight.engine.models.loading import ModelLoader
from safelight.engine.residency import Residency
from safelight.engine.residents import ModelState, Residents
from safelight.engine.tasks import Assignment, ModelSpec
from safelight.metrics import EngineFigures
from safelight.runs import Provenance, RunError

log = logging.getLogger(__name__)

T = TypeVar("T")


class DeviceLost(Exception):
    """A device takes no more work from this process. The runs it had did not fail of themselves."""


@dataclass(slots=True, eq=False)
class _Stream:
    """The events of one assignment on their way to its reader."""

    run_id: str
    num_images_left: int
    events: asyncio.Queue[EngineEvent] = field(default_factory=asyncio.Queue)
    has_ended: bool = False


class EngineHost:
    """Owns one Engine and its thread. All methods are called from one event loop.

    Steps are told of no more often than every `progress_seconds`. `load` replaces the loader of real weights (tests
    pass FakeModel), `estimate` what tells their bytes beforehand, `compile` what takes too long for a first picture to
    wait for.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        device: str = "cpu",
        checkpoint_seconds: float | None = None,
        progress_seconds: float = 0.0,
        load: Callable[[Path], ImageModel] | None = None,
        estimate: Callable[[Path], int] | None = None,
        compile: Callable[[ImageModel], ImageModel] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        loader = ModelLoader(
            device=device, dtype=settings.dtype, num_threads=settings.num_threads, backend=settings.backend
        )
        self._load = load or loader.load
        self._estimate = estimate or (loader.estimate_bytes if load is None else lambda folder: 0)
        self._compile = compile or (loader.compile if load is None else lambda model: model)
        self._prepare = loader.prepare if load is None else None
        self._now = now
        self._engine = Engine(
            max_resident_images=settings.max_resident_images,
            max_batch_rows=settings.max_batch_rows,
            prompt_cache_size=settings.prompt_cache_size,
            checkpoint_seconds=checkpoint_seconds,
            progress_seconds=progress_seconds,
            drawing_bytes=drawing_bytes(settings, device),
        )
        self._max_resident_images = settings.max_resident_images
        self._loader = loader
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # A run given back may return before the engine has let go of it: its streams end in the order they began.
        self._streams: dict[str, deque[_Stream]] = {}
        self._settings, self._device = settings, device
        self._tell: Callable[[ModelState], Awaitable[None]] = _tell_nobody
        self._progress_at = now()
        self._is_stopping = False
        self._is_lost = False
        self._thread: threading.Thread | None = None
        self._models: Residents | None = None

    async def start(self) -> None:
        """Start the thread; import, and choose threads and dtype in it."""
        self._event_loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="safelight-engine", daemon=True)
        self._thread.start()
        if self._prepare is not None:
            await self._in_engine(self._prepare)
        self._models = await self._in_engine(self._make_residents)

    @property
    def models(self) -> Residents:
        """The models of this device. Runs are handed in while their model is held."""
        assert self._models is not None, "the host was started"
        return self._models

    async def load(self, spec: ModelSpec) -> None:
        """Bring a model, and hold it no longer than that. Raises ModelError with the remedy."""
        async with self.models.hold(spec):
            pass

    def watch_models(self, tell: Callable[[ModelState], Awaitable[None]]) -> None:
        """`tell` hears of every change. To be called before `start`."""
        self._tell = tell

    async def serve(self, key: str, model: ImageModel) -> None:
        """Draw runs of `key` with `model` from now on; those under way end with the one they have."""
        await self._in_engine(lambda: self._engine.load(key, model))

    async def withdraw(self, key: str) -> None:
        """Forget the model; its runs under way fail with `model_unloaded`."""
        await self._in_engine(lambda: self._engine.unload(key))

    async def release(self) -> bool:
        """Have the models on the device give back what they can make again; whether there was any."""
        return await self._in_engine(self._engine.release)

    @property
    def num_free_images(self) -> int:
        """How many more images may be under way, counting those that were handed in but not yet admitted."""
        under_way = sum(stream.num_images_left for streams in self._streams.values() for stream in streams)
        return max(0, self._max_resident_images - under_way)

    @property
    def seconds_since_progress(self) -> float:
        """Since the engine last told of a step while it had work; 0 when it has none."""
        return self._now() - self._progress_at if self._streams else 0.0

    @property
    def is_lost(self) -> bool:
        """Its thread has ended over a fault, or its device takes no more work from this process. Its runs end with
        AssignmentFailed, code `engine_lost`, and only a new process can draw them."""
        return self._is_lost

    @property
    def figures(self) -> EngineFigures:
        """What the engine has done so far."""
        return self._engine.figures

    @property
    def max_pixels(self) -> int | None:
        """Of the largest picture that fits into the device's memory; None where nobody knows."""
        return self._engine.max_pixels

    @property
    def provenance(self) -> Provenance | None:
        """What pictures are drawn with; None where models come from elsewhere than its own loader."""
        tuning = self._loader.tuning
        return None if tuning is None else tuning.provenance

    def generate(self, assignment: Assignment) -> AsyncIterator[EngineEvent]:
        """Hand the assignment in at once; its events, up to and with the end event. Leaving the iterator cancels it."""
        if not self._streams:
            self._progress_at = self._now()
        self.cancel(assignment.run_id)
        stream = _Stream(assignment.run_id, len(assignment.indices))
        self._streams.setdefault(stream.run_id, deque()).append(stream)
        if self._is_lost:
            self._deliver([_failed(stream.run_id, faults.ENGINE_LOST)])
        elif self._is_stopping or self._thread is None:
            self._deliver([_failed(stream.run_id, faults.ENGINE_STOPPED)])
        else:
            self._commands.put(lambda: self._submit(assignment))
        return self._read(stream)

    def cancel(self, run_id: str) -> None:
        """Out within one step; the run's events end with AssignmentCancelled. Unknown ids are ignored."""
        if run_id in self._streams:
            self._commands.put(lambda: self._engine.cancel(run_id))

    def watch(self, run_id: str) -> None:
        """Somebody watches the run: for a while its events hold previews. Unknown ids are ignored."""
        if run_id in self._streams:
            self._commands.put(lambda: self._engine.watch(run_id))

    async def checkpoint(self, run_id: str) -> Checkpoint | None:
        """How far the run has come, between two steps; None where nothing has begun."""
        return await self._in_engine(lambda: self._engine.checkpoint(run_id))

    async def close(self) -> None:
        """Stop after the step under way. Runs not finished end with AssignmentFailed, code `engine_stopped`."""
        if self._thread is None or self._is_stopping:
            return
        self._is_stopping = True
        self._commands.put(lambda: self._engine.fail_all(faults.ENGINE_STOPPED))
        await asyncio.to_thread(self._thread.join)
        if self._models is not None:
            self._models.close()

    async def _read(self, stream: _Stream) -> AsyncIterator[EngineEvent]:
        try:
            while not (stream.has_ended and stream.events.empty()):
                yield await stream.events.get()
        finally:
            # Not when the run has come back meanwhile: that stream was cancelled then, and the newer one goes on.
            if not stream.has_ended and self._streams[stream.run_id][-1] is stream:
                self.cancel(stream.run_id)

    async def _in_engine(self, call: Callable[[], T]) -> T:
        """Run `call` in the engine's thread, between two steps."""
        done: Future[T] = Future()

        def command() -> None:
            # Who asked may have been cancelled.
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self._commands.put(command)
        return await asyncio.wrap_future(done)

    def _make_residents(self) -> Residents:
        residency = Residency(
            device_bytes=device_bytes(self._settings, self._device),
            host_bytes=host_bytes(self._settings, self._device),
        )
        return Residents(
            residency,
            self,
            load=self._load_as_served,
            compile=self._compile,
            estimate=lambda spec: self._estimate(spec.folder),
            tell=self._tell,
            now=self._now,
        )

    def _load_as_served(self, spec: ModelSpec) -> ImageModel:
        model = self._load(spec.folder)
        model.register_loras(spec.loras)
        model.set_reading(spec.reading)
        return model

    def _deliver(self, events: list[tuple[str, EngineEvent]]) -> None:
        """Thread: the event loop's. Each event to its reader; an end event frees the run's room."""
        self._progress_at = self._now()
        for run_id, event in events:
            streams = self._streams[run_id]
            stream = streams[0]
            if isinstance(event, ImageReady):
                stream.num_images_left -= 1
            if isinstance(event, (AssignmentDone, AssignmentCancelled, AssignmentFailed)):
                stream.has_ended = True
                streams.popleft()
                if not streams:
                    del self._streams[run_id]
            stream.events.put_nowait(event)

    def _lose(self) -> None:
        """Thread: the event loop's. Whoever reads is told, and whoever comes."""
        self._is_lost = True
        self._deliver([_failed(run_id, faults.ENGINE_LOST) for run_id, each in self._streams.items() for _ in each])

    def _submit(self, assignment: Assignment) -> None:
        """Thread: the engine's. Raises DeviceLost."""
        try:
            self._engine.submit(assignment)
        except Exception as error:
            log.exception("run %s cannot be taken in", assignment.run_id)
            events = [_failed(assignment.run_id, faults.engine_failed(error))]
            self._check_device(events)
            self._publish(events)

    def _run(self) -> None:
        """Thread: the engine's."""
        try:
            self._loop()
        except Exception:
            log.critical("the engine cannot go on", exc_info=True)
            with contextlib.suppress(RuntimeError):
                self._event_loop.call_soon_threadsafe(self._lose)

    def _loop(self) -> None:
        """Thread: the engine's. Raises what no run can be blamed for."""
        while not (self._is_stopping and self._commands.empty() and not self._engine.has_work):
            self._take_commands()
            # Runs that a command ended are told of now, not after a step of the others.
            self._publish(self._engine.take_events())
            if self._engine.has_work:
                events = self._step()
                self._check_device(events)
                self._publish(events)

    def _take_commands(self) -> None:
        """All that wait; without work, wait for one (a little while, so that stopping is seen)."""
        with contextlib.suppress(queue.Empty):
            if not self._engine.has_work:
                self._commands.get(timeout=0.5)()
            while True:
                self._commands.get_nowait()()

    def _step(self) -> list[tuple[str, EngineEvent]]:
        try:
            return self._engine.step()
        except Exception as error:
            log.exception("the engine's step failed; every run under way is given up")
            self._engine.fail_all(faults.engine_failed(error))
            return self._engine.take_events()

    def _check_device(self, events: list[tuple[str, EngineEvent]]) -> None:
        """Before a run is told that it failed. Raises DeviceLost."""
        failures = (event.error.code for _, event in events if isinstance(event, AssignmentFailed))
        if not faults.MAY_BE_THE_DEVICE.isdisjoint(failures) and faults.is_lost(self._device):
            raise DeviceLost(f"{self._device} takes no more work from this process")

    def _publish(self, events: list[tuple[str, EngineEvent]]) -> None:
        if not events:
            return
        # The loop may be gone when a process ends in the middle of a step; nobody reads any more then.
        with contextlib.suppress(RuntimeError):
            self._event_loop.call_soon_threadsafe(self._deliver, events)


async def _tell_nobody(state: ModelState) -> None:
    pass


def _failed(run_id: str, error: RunError) -> tuple[str, EngineEvent]:
    return run_id, AssignmentFailed(error, 0.0)
