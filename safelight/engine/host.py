"""The engine's thread behind an async face: the only file with both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from safelight.engine import faults
from safelight.engine.assignments import (
    Assignment,
    AssignmentCancelled,
    AssignmentDone,
    AssignmentFailed,
    EngineEvent,
    ImageReady,
    ModelSpec,
)
from safelight.engine.engine import Engine
from safelight.engine.models.base import ImageModel
from safelight.errors import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")


class EngineHost:
    """Owns one Engine and its thread. All methods are called from one event loop.

    `load` turns a folder into a model, in a thread of its own so that running work goes on. `prepare` runs first in the
    engine's thread: imports, the choice of threads and dtype.
    """

    def __init__(
        self,
        *,
        load: Callable[[Path], ImageModel],
        prepare: Callable[[], None] = lambda: None,
        max_resident_images: int = 16,
        max_batch_rows: int = 16,
        prompt_cache_size: int = 256,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._prepare = prepare
        self._now = now
        self._engine = Engine(
            max_resident_images=max_resident_images,
            max_batch_rows=max_batch_rows,
            prompt_cache_size=prompt_cache_size,
        )
        self._max_resident_images = max_resident_images
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[EngineEvent]] = {}
        self._num_images_left: dict[str, int] = {}
        self._loaded: set[str] = set()
        self._loading = asyncio.Lock()
        self._progress_at = now()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Start the thread and run `prepare` in it. Raises what `prepare` raises."""
        self._event_loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="safelight-engine", daemon=True)
        self._thread.start()
        await self._in_engine(self._prepare)

    async def load(self, spec: ModelSpec) -> None:
        """Load a model and serve it as `spec.key`; one load at a time. Raises ModelError with the remedy."""
        async with self._loading:
            if spec.key in self._loaded:
                return
            try:
                model = await asyncio.to_thread(self._load, spec.folder)
            except ModelError:
                raise
            except Exception as error:
                log.exception("loading %s from %s failed", spec.key, spec.folder)
                reason = f"{type(error).__name__}: {error}"
                raise ModelError(f"the model in {spec.folder} cannot be loaded ({reason})") from error
            await self._in_engine(lambda: self._engine.load(spec.key, model))
            self._loaded.add(spec.key)

    async def unload(self, key: str) -> None:
        """Forget the model; its runs under way fail with `model_unloaded`."""
        self._loaded.discard(key)
        await self._in_engine(lambda: self._engine.unload(key))

    def is_loaded(self, key: str) -> bool:
        return key in self._loaded

    @property
    def num_free_images(self) -> int:
        """How many more images may be under way, counting those that were handed in but not yet admitted."""
        return max(0, self._max_resident_images - sum(self._num_images_left.values()))

    @property
    def seconds_since_progress(self) -> float:
        """Since the engine last finished a step while it had work; 0 when it has none."""
        return self._now() - self._progress_at if self._streams else 0.0

    def generate(self, assignment: Assignment) -> AsyncIterator[EngineEvent]:
        """Hand the assignment in at once; its events, up to and with the end event. Leaving the iterator cancels it."""
        run_id = assignment.run_id
        assert run_id not in self._streams, "a run is handed in once"
        if not self._streams:
            self._progress_at = self._now()
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._streams[run_id] = events
        self._num_images_left[run_id] = len(assignment.indices)
        if self._is_stopping or self._thread is None:
            self._deliver([(run_id, AssignmentFailed(faults.ENGINE_STOPPED, 0.0))])
        else:
            self._commands.put(lambda: self._engine.submit(assignment))
        return self._stream(run_id, events)

    def cancel(self, run_id: str) -> None:
        """Out within one step; the run's events end with AssignmentCancelled. Unknown ids are ignored."""
        if run_id in self._streams:
            self._commands.put(lambda: self._engine.cancel(run_id))

    async def close(self) -> None:
        """Stop after the step under way. Runs not finished end with AssignmentFailed, code `engine_stopped`."""
        if self._thread is None or self._is_stopping:
            return
        self._is_stopping = True
        self._commands.put(lambda: self._engine.fail_all(faults.ENGINE_STOPPED))
        await asyncio.to_thread(self._thread.join)

    async def _stream(self, run_id: str, events: asyncio.Queue[EngineEvent]) -> AsyncIterator[EngineEvent]:
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, (AssignmentDone, AssignmentCancelled, AssignmentFailed)):
                    return
        finally:
            self.cancel(run_id)

    async def _in_engine(self, call: Callable[[], T]) -> T:
        """Run `call` in the engine's thread, between two steps."""
        done: Future[T] = Future()

        def command() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self._commands.put(command)
        return await asyncio.wrap_future(done)

    def _deliver(self, events: list[tuple[str, EngineEvent]]) -> None:
        """Thread: the event loop's. Hand each event to its reader; an end event frees the run's room."""
        self._progress_at = self._now()
        for run_id, event in events:
            stream = self._streams.get(run_id)
            if stream is None:
                continue
            if isinstance(event, ImageReady):
                self._num_images_left[run_id] -= 1
            if isinstance(event, (AssignmentDone, AssignmentCancelled, AssignmentFailed)):
                del self._streams[run_id], self._num_images_left[run_id]
            stream.put_nowait(event)

    def _run(self) -> None:
        """Thread: the engine's."""
        while not (self._is_stopping and self._commands.empty() and not self._engine.has_work):
            self._take_commands()
            if self._engine.has_work:
                self._publish(self._step())

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
            return []

    def _publish(self, events: list[tuple[str, EngineEvent]]) -> None:
        # The loop may be gone when a process ends in the middle of a step; nobody reads any more then.
        with contextlib.suppress(RuntimeError):
            self._event_loop.call_soon_threadsafe(self._deliver, events)
