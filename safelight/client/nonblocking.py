"""The asyncio face of the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Self, TypeVar, Unpack

import httpx2

from safelight.client.answers import Result, RunRecord
from safelight.client.calls import Calls, Patience, Pause, PredictParams, Talk
from safelight.runs import RunEvent, RunStatus

T = TypeVar("T")


class AsyncClient:
    """The Client for asyncio: the same calls, awaited. One per event loop; `close` it, or use it as a
    context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = Calls(url, key, patience, monotonic=monotonic)
        self._http = httpx2.AsyncClient(transport=transport)
        self._sleep = sleep

    async def predict(
        self,
        deployment: str,
        prompt: str,
        *,
        timeout_seconds: float | None = None,
        idempotency_key: str | None = None,
        **params: Unpack[PredictParams],
    ) -> Result:
        """Draw `prompt` and wait for the pictures. Raises the errors of safelight.errors; WaitTimeout
        after the time given.

        The call is repeated when the connection breaks or the server is busy, under one idempotency key: one run.
        """
        talk = self._calls.predict(
            deployment, prompt, params, idempotency_key=idempotency_key, timeout_seconds=timeout_seconds
        )
        return await self._hold(talk)

    async def submit(
        self,
        deployment: str,
        prompt: str,
        *,
        webhook_endpoint: str | None = None,
        idempotency_key: str | None = None,
        **params: Unpack[PredictParams],
    ) -> AsyncRunHandle:
        """Leave a run and return at once; its end is also told to `webhook_endpoint`, when there is one."""
        named = {**params, "webhook_endpoint": webhook_endpoint}
        run_id = await self._hold(self._calls.submit(deployment, prompt, named, idempotency_key=idempotency_key))
        return AsyncRunHandle(self, run_id)

    async def wait(self, run_id: str, *, timeout_seconds: float | None = None) -> Result:
        """The pictures of a run, once it has ended. Raises RunFailed, Conflict (cancelled), WaitTimeout, NotFound."""
        return await self._hold(self._calls.wait(run_id, timeout_seconds=timeout_seconds))

    async def get(self, run_id: str) -> RunRecord:
        """The run as it is now. Raises NotFound."""
        return await self._hold(self._calls.get(run_id))

    async def runs(
        self,
        *,
        deployment: str | None = None,
        status: RunStatus | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 50,
    ) -> AsyncIterator[RunRecord]:
        """The runs of the key's project, newest first, fetched page by page. Times without a zone are UTC."""
        which = {"deployment": deployment, "status": status, "limit": page_size}
        times = {"created_after": created_after, "created_before": created_before}
        cursor: str | None = None
        while True:
            records, cursor = await self._hold(self._calls.page(which, times, cursor))
            for record in records:
                yield record
            if cursor is None:
                return

    async def events(self, run_id: str, *, after: int = 0) -> AsyncIterator[RunEvent]:
        """What happens to a run, as it happens, to its end; a dropped connection is taken up where it broke."""
        feed = self._calls.feed(run_id, after=after)
        while not feed.has_ended:
            try:
                response = await self._http.send(feed.request(), stream=True)
                try:
                    if response.status_code == 200:
                        async for sent in httpx2.EventSource(response):
                            if (event := feed.read(sent)) is not None:
                                yield event
                            if feed.has_ended:
                                return
                    else:
                        await response.aread()
                finally:
                    await response.aclose()
                pause_seconds = feed.pause_after(response)
            except httpx2.RequestError as failure:
                pause_seconds = feed.pause_after_break(failure)
            await self._sleep(pause_seconds)

    async def cancel(self, run_id: str) -> RunRecord:
        """Ask for an end: a queued run has ended on return, a running one ends within a denoising step."""
        return await self._hold(self._calls.cancel(run_id))

    async def delete(self, run_id: str) -> None:
        """Remove a run and its pictures. Raises Conflict while it is running."""
        await self._hold(self._calls.delete(run_id))

    async def image(self, run_id: str, index: int) -> bytes:
        """The file of one picture. Raises NotFound."""
        return await self._hold(self._calls.image(run_id, index))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._calls.url!r})"

    async def _hold(self, talk: Talk[T]) -> T:
        """Carry out a conversation to its end."""
        try:
            step = next(talk)
            while True:
                if isinstance(step, Pause):
                    await self._sleep(step.seconds)
                    step = talk.send(None)
                    continue
                try:
                    response = await self._http.send(step.request)
                except httpx2.RequestError as failure:
                    step = talk.throw(failure)
                else:
                    step = talk.send(response)
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncRunHandle:
    """A run that was submitted."""

    def __init__(self, client: AsyncClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    async def wait(self, *, timeout_seconds: float | None = None) -> Result:
        """See AsyncClient.wait."""
        return await self._client.wait(self.run_id, timeout_seconds=timeout_seconds)

    async def get(self) -> RunRecord:
        """See AsyncClient.get."""
        return await self._client.get(self.run_id)

    def events(self, *, after: int = 0) -> AsyncIterator[RunEvent]:
        """See AsyncClient.events."""
        return self._client.events(self.run_id, after=after)

    async def cancel(self) -> RunRecord:
        """See AsyncClient.cancel."""
        return await self._client.cancel(self.run_id)

    def __repr__(self) -> str:
        return f"AsyncRunHandle({self.run_id!r})"
