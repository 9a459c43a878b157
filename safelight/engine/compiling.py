"""Models that are drawn with as they were loaded, while something faster is made of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from safelight.engine.models.base import ImageModel

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long the compiler leaves the processor to the first run, unless somebody waits for it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Compilation:
    task: asyncio.Task[None]
    may_begin: asyncio.Event


class Compilations:
    """Those of one device. `compile` runs in a thread of its own; `serve` is told of each model that was compiled."""

    def __init__(
        self, compile: Callable[[ImageModel], ImageModel], serve: Callable[[str, ImageModel], Awaitable[None]]
    ) -> None:
        self._compile = compile
        self._serve = serve
        self._under_way: dict[str, _Compilation] = {}

    def plan(self, key: str, model: ImageModel) -> None:
        """To be compiled after the first run, or a little later where that is long."""
        may_begin = asyncio.Event()
        task = asyncio.create_task(self._carry_out(key, model, may_begin))
        self._under_way[key] = _Compilation(task, may_begin)

    def begin(self, key: str) -> None:
        """Compile now. Keys that are not planned are ignored."""
        if key in self._under_way:
            self._under_way[key].may_begin.set()

    async def wait(self, key: str) -> None:
        """Until the model is served as it will stay."""
        self.begin(key)
        if key in self._under_way:
            await asyncio.shield(self._under_way[key].task)

    def forget(self, key: str) -> None:
        """The model leaves: what is made of it is not served."""
        if key in self._under_way:
            self._under_way.pop(key).task.cancel()

    async def _carry_out(self, key: str, model: ImageModel, may_begin: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await may_begin.wait()
        try:
            compiled = await asyncio.to_thread(self._compile, model)
        except Exception:
            log.exception("%s is drawn as it was loaded: compiling failed", key)
        else:
            await self._serve(key, compiled)
        del self._under_way[key]
