"""Both faces of the client behind one set of blocking calls, so that each test is written once and runs for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from safelight.client import AsyncClient, Client

from .stub import Stub


class Awaited:
    """An AsyncClient whose calls block, on a loop of its own."""

    def __init__(self, runner: asyncio.Runner, inner: Any) -> None:
        self._runner = runner
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *args, **kwargs: self._settle(found, *args, **kwargs)) if callable(found) else found

    def __repr__(self) -> str:
        return repr(self._inner)

    def _settle(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            got = call(*args, **kwargs)
            return [each async for each in got] if isinstance(got, AsyncIterator) else await got

        got = self._runner.run(run())
        return Awaited(self._runner, got) if type(got).__name__ == "AsyncRunHandle" else got


MakeClient = Callable[..., Any]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def slept() -> list[float]:
    """The pauses that a client of `connect` made, none of which took time."""
    return []


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, slept: list[float]) -> Iterator[MakeClient]:
    """Makes a client of the one face or the other, which writes its pauses down instead of sleeping."""
    made: list[Any] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with asyncio.Runner() as runner:

        def make(url: str, key: str = "sl_live_secret", **options: Any) -> Any:
            # Without TLS, whose certificates take longer to load than the test to run.
            if request.param == "blocking":
                plain: dict[str, Any] = {"sleep": slept.append, "transport": httpx2.HTTPTransport(verify=False)}
                client: Any = Client(url, key, **plain | options)
            else:
                plain = {"sleep": sleep, "transport": httpx2.AsyncHTTPTransport(verify=False)}
                client = Awaited(runner, AsyncClient(url, key, **plain | options))
            made.append(client)
            return client

        yield make
        for client in made:
            client.close()
