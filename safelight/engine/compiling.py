"""Compiles loaded models while the first runs are drawn with them as they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from safelight.engine.models.base import ImageModel

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long the compiler leaves the processor to the first run, unless somebody waits for it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Compilation:
    task: asyncio.Task[None]
    may_begin: asyncio.Event


class Compilations:
    """Those of one device, one at a time, in a thread of its own.

    `compile` makes a faster model of one; `in_use` keeps a model where it is for the length of a block; `serve` is told
    of what was made of it, and how many seconds that took.
    """

    def __init__(
        self,
        compile: Callable[[ImageModel], ImageModel],
        *,
        in_use: Callable[[str], AbstractContextManager[None]],
        serve: Callable[[str, ImageModel, float], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._compile = compile
        self._in_use = in_use
        self._serve = serve
        self._now = now
        self._turn = asyncio.Lock()
        self._under_way: dict[str, _Compilation] = {}

    def plan(self, key: str, model: ImageModel) -> None:
        """To be compiled after the first run, or a little later where that is long."""
        may_begin = asyncio.Event()
        task = asyncio.create_task(self._carry_out(key, model, may_begin))
        self._under_way[key] = _Compilation(task, may_begin)
        task.add_done_callback(partial(self._end, key))

    def begin(self, key: str) -> None:
        """Compile as soon as no other is compiled. Keys that are not planned are ignored."""
        if key in self._under_way:
            self._under_way[key].may_begin.set()

    async def wait(self, key: str) -> None:
        """Until the model is served as it will stay."""
        self.begin(key)
        if key in self._under_way:
            await asyncio.shield(self._under_way[key].task)

    def forget(self, key: str) -> None:
        """The model leaves. It was not in use, so its compilation has not begun, and never will."""
        if key in self._under_way:
            self._under_way[key].task.cancel()

    def close(self) -> None:
        """Nothing more is served; a thread under way comes to its end for nothing."""
        for compilation in self._under_way.values():
            compilation.task.cancel()

    async def _carry_out(self, key: str, model: ImageModel, may_begin: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await may_begin.wait()
        async with self._turn:
            with self._in_use(key):
                began = self._now()
                try:
                    compiled = await asyncio.to_thread(self._compile, model)
                    await self._serve(key, compiled, self._now() - began)
                except Exception:
                    log.exception("%s is drawn as it was loaded: compiling failed", key)

    def _end(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._under_way and self._under_way[key].task is task:
            del self._under_way[key]
