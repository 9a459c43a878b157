"""How a command reaches the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from safelight.config import Settings

if TYPE_CHECKING:
    from safelight.store import Store

T = TypeVar("T")


def with_store(settings: Settings, use: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store of `settings`, give it to `use`, close it. Works beside a running server."""
    from safelight.app import open_store

    async def opened() -> T:
        store = await open_store(settings)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(opened())
