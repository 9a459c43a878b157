"""The models of one device as they come and go: loaded, held while they draw, moved out for others, dropped.

Who goes is `residency`'s choice; here it is done. All methods are called from one event loop; weights are read and
moved in threads of their own, so that running work goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from safelight.deployments import DeploymentStatus
from safelight.engine import faults
from safelight.engine.compiling import Compilations
from safelight.engine.models.base import ImageModel
from safelight.engine.models.placing import move_model, num_bytes_of
from safelight.engine.residency import Failures, Move, Place, Residency
from safelight.engine.tasks import ModelSpec
from safelight.errors import ModelError
from safelight.garbage import give_memory_back

log = logging.getLogger(__name__)

KEPT_IN_HOST_MEMORY = "kept in host memory"


@dataclass(frozen=True, slots=True)
class ModelState:
    """What became of a model. `load_seconds` is how long it took to bring it, once it is active."""

    key: str
    status: DeploymentStatus
    reason: str = ""
    load_seconds: float | None = None


class Stage(Protocol):
    """Where models are served: the engine, between two steps."""

    async def serve(self, key: str, model: ImageModel) -> None:
        """Runs of `key` are drawn with `model` from now on."""
        ...

    async def withdraw(self, key: str) -> None:
        """Forget the model. Unknown keys are ignored."""
        ...

    async def release(self) -> bool:
        """Have all models give the device memory of what they can make again back; whether there was any."""
        ...


class Residents:
    """Brings models to the device one at a time, in the order they were asked for. `tell` hears of every change.

    Each is served as soon as it is loaded. What `compile` makes of it takes its place once that is done.
    """

    def __init__(
        self,
        residency: Residency,
        stage: Stage,
        *,
        load: Callable[[ModelSpec], ImageModel],
        compile: Callable[[ImageModel], ImageModel],
        estimate: Callable[[ModelSpec], int],
        tell: Callable[[ModelState], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residency = residency
        self._stage = stage
        self._load = load
        self._estimate = estimate
        self._tell = tell
        self._now = now
        self._compilations = Compilations(compile, in_use=self._in_use, serve=self._serve_compiled, now=now)
        self._failures = Failures()
        self._models: dict[str, ImageModel] = {}
        self._num_bytes: dict[str, int] = {}
        self._leaving: frozenset[str] = frozenset()
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def is_loaded(self, key: str) -> bool:
        """Whether the model is on the device."""
        return self._residency.place_of(key) is Place.DEVICE

    @contextlib.asynccontextmanager
    async def hold(self, spec: ModelSpec, *, wait_compiled: bool = True) -> AsyncIterator[None]:
        """Keep the model on the device for the length of the block; bring it first where it is elsewhere, and wait
        until it is compiled unless that may come later.

        Raises ModelError with the remedy where it cannot be brought; after a failure, at once for a while.
        """
        while spec.key in self._leaving:
            await self._change()
        with self._in_use(spec.key):
            if not self.is_loaded(spec.key):
                await asyncio.shield(self._bring(spec))
            if wait_compiled:
                await self._compilations.wait(spec.key)
            try:
                yield
            finally:
                self._compilations.begin(spec.key)

    @contextlib.contextmanager
    def _in_use(self, key: str) -> Iterator[None]:
        self._residency.begin_use(key, self._now())
        try:
            yield
        finally:
            self._residency.end_use(key, self._now())
            self._announce()

    def close(self) -> None:
        """Nothing is served any more."""
        self._compilations.close()

    async def tidy(self) -> None:
        """Drop the models whose cooldown is over, and retired ones."""
        async with self._turn:
            await self._carry_out(self._residency.cooled(self._now()))

    def retire(self, key: str) -> None:
        """The model is no longer served: `tidy` drops it once it is idle. Unknown keys are ignored."""
        self._residency.retire(key)

    @property
    def keys(self) -> frozenset[str]:
        """Of all models on the device or in host memory."""
        return frozenset(self._models)

    def _bring(self, spec: ModelSpec) -> asyncio.Task[None]:
        """One task for all who wait for the model."""
        self._failures.check(spec.key, self._now())
        if spec.key not in self._bringing:
            task = self._bringing[spec.key] = asyncio.create_task(self._bring_now(spec))
            task.add_done_callback(lambda done: self._brought(spec.key, done))
        return self._bringing[spec.key]

    def _brought(self, key: str, task: asyncio.Task[None]) -> None:
        del self._bringing[key]
        if not task.cancelled():
            # Nobody may be left who waits for it.
            task.exception()

    async def _bring_now(self, spec: ModelSpec) -> None:
        async with self._turn:
            began = self._now()
            await self._tell(ModelState(spec.key, DeploymentStatus.STARTING))
            try:
                await self._make_room(spec.key, await self._bytes_of(spec))
                began = self._now()
                await self._place(spec, began)
            except ModelError as error:
                await self._fail(spec, error)
                raise
            except Exception as error:
                log.exception("loading %s from %s failed", spec.key, spec.folder)
                wrapped = ModelError(_reason(spec, error))
                await self._fail(spec, wrapped)
                raise wrapped from error
            self._failures.forget(spec.key)
            await self._tell(ModelState(spec.key, DeploymentStatus.ACTIVE, load_seconds=self._now() - began))
            # It may hold more than its files promised.
            with contextlib.suppress(ModelError):
                plan = self._residency.plan(spec.key, 0, now=self._now())
                await self._carry_out(plan.moves)

    async def _fail(self, spec: ModelSpec, error: ModelError) -> None:
        self._failures.record(spec.key, error.message, self._now())
        if spec.key in self._models:
            # It was in host memory and did not get back whole.
            await self._leave(Move(spec.key, Place.NOWHERE))
        await self._tell(ModelState(spec.key, DeploymentStatus.FAILED, error.message))

    async def _bytes_of(self, spec: ModelSpec) -> int:
        if spec.key not in self._num_bytes:
            self._num_bytes[spec.key] = await asyncio.to_thread(self._estimate, spec)
        return self._num_bytes[spec.key]

    async def _make_room(self, key: str, num_bytes: int) -> None:
        try:
            while (plan := self._residency.plan(key, num_bytes, now=self._now())).waits_for:
                self._leaving = frozenset() if plan.patience_seconds else plan.waits_for
                await self._change(timeout_seconds=plan.patience_seconds or None)
            await self._carry_out(plan.moves)
        finally:
            self._leaving = frozenset()
            self._announce()

    async def _carry_out(self, moves: tuple[Move, ...]) -> None:
        """Nobody begins to use what is about to be moved."""
        self._leaving = frozenset(move.key for move in moves)
        try:
            for move in moves:
                if move.to is Place.NOWHERE:
                    self._compilations.forget(move.key)
                await self._stage.withdraw(move.key)
                await self._leave(move)
        finally:
            self._leaving = frozenset()
            self._announce()

    async def _leave(self, move: Move) -> None:
        if move.to is Place.HOST:
            try:
                await asyncio.to_thread(move_model, self._models[move.key], torch.device("cpu"))
            except (MemoryError, RuntimeError) as error:
                log.warning("no host memory for %s; it is dropped", move.key, exc_info=error)
                move = Move(move.key, Place.NOWHERE)
        if move.to is Place.NOWHERE:
            del self._models[move.key]
            await asyncio.to_thread(_give_weights_back)
        self._residency.carried_out(move)
        log.info("model moved out", extra={"model": move.key, "to": move.to.value})
        reason = KEPT_IN_HOST_MEMORY if move.to is Place.HOST else ""
        await self._tell(ModelState(move.key, DeploymentStatus.COLD, reason))

    async def _place(self, spec: ModelSpec, began: float) -> None:
        model = await self._brought_there(spec)
        await self._stage.serve(spec.key, model)
        if spec.key not in self._models:
            self._compilations.plan(spec.key, model)
        self._models[spec.key] = model
        self._num_bytes[spec.key] = num_bytes_of(model)
        now = self._now()
        self._residency.settle(
            spec.key,
            self._num_bytes[spec.key],
            now=now,
            load_seconds=now - began,
            is_pinned=spec.is_pinned,
            cooldown_seconds=spec.cooldown_seconds,
        )

    async def _serve_compiled(self, key: str, model: ImageModel, seconds: float) -> None:
        await self._stage.serve(key, model)
        self._models[key] = model
        self._residency.note_compiled(key, seconds)

    async def _brought_there(self, spec: ModelSpec) -> ImageModel:
        with contextlib.suppress(torch.OutOfMemoryError):
            return await asyncio.to_thread(self._on_device, spec)
        await self._stage.release()
        return await asyncio.to_thread(self._on_device, spec)

    def _on_device(self, spec: ModelSpec) -> ImageModel:
        """The model, loaded or moved there. Thread: any."""
        if (model := self._models.get(spec.key)) is None:
            return self._load(spec)
        move_model(model, model.device)
        return model

    async def _change(self, *, timeout_seconds: float | None = None) -> None:
        """Wait until models came, went, or fell idle."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _reason(spec: ModelSpec, error: Exception) -> str:
    if faults.is_out_of_memory(error):
        return f"there is no memory for the model in {spec.folder}; lower engine.model_memory_mb, or free some"
    return f"the model in {spec.folder} cannot be loaded ({type(error).__name__}: {error})"


def _give_weights_back() -> None:
    """To the system, what dropped weights have left: the allocators would keep it for ever."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_memory_back()
