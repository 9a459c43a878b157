"""The blocking face of the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Self, TypeVar, Unpack

import httpx2

from safelight.client.answers import Result, RunRecord
from safelight.client.calls import Calls, Patience, Pause, PredictParams, Talk
from safelight.runs import RunEvent, RunStatus

T = TypeVar("T")


class Client:
    """Calls one server with one key. Safe to share between threads; `close` it, or use it as a context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = Calls(url, key, patience, monotonic=monotonic)
        self._http = httpx2.Client(transport=transport)
        self._sleep = sleep

    def predict(
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
        return self._hold(talk)

    def submit(
        self,
        deployment: str,
        prompt: str,
        *,
        webhook_endpoint: str | None = None,
        idempotency_key: str | None = None,
        **params: Unpack[PredictParams],
    ) -> RunHandle:
        """Leave a run and return at once; its end is also told to `webhook_endpoint`, when there is one."""
        named = {**params, "webhook_endpoint": webhook_endpoint}
        run_id = self._hold(self._calls.submit(deployment, prompt, named, idempotency_key=idempotency_key))
        return RunHandle(self, run_id)

    def wait(self, run_id: str, *, timeout_seconds: float | None = None) -> Result:
        """The pictures of a run, once it has ended. Raises RunFailed, Conflict (cancelled), WaitTimeout, NotFound."""
        return self._hold(self._calls.wait(run_id, timeout_seconds=timeout_seconds))

    def get(self, run_id: str) -> RunRecord:
        """The run as it is now. Raises NotFound."""
        return self._hold(self._calls.get(run_id))

    def runs(
        self,
        *,
        deployment: str | None = None,
        status: RunStatus | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 50,
    ) -> Iterator[RunRecord]:
        """The runs of the key's project, newest first, fetched page by page. Times without a zone are UTC."""
        which = {"deployment": deployment, "status": status, "limit": page_size}
        times = {"created_after": created_after, "created_before": created_before}
        cursor: str | None = None
        while True:
            records, cursor = self._hold(self._calls.page(which, times, cursor))
            yield from records
            if cursor is None:
                return

    def events(self, run_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """What happens to a run, as it happens, to its end; a dropped connection is taken up where it broke."""
        feed = self._calls.feed(run_id, after=after)
        while not feed.has_ended:
            try:
                response = self._http.send(feed.request(), stream=True)
                try:
                    if response.status_code == 200:
                        for sent in httpx2.EventSource(response):
                            if (event := feed.read(sent)) is not None:
                                yield event
                            if feed.has_ended:
                                return
                    else:
                        response.read()
                finally:
                    response.close()
                pause_seconds = feed.pause_after(response)
            except httpx2.RequestError as failure:
                pause_seconds = feed.pause_after_break(failure)
            self._sleep(pause_seconds)

    def cancel(self, run_id: str) -> RunRecord:
        """Ask for an end: a queued run has ended on return, a running one ends within a denoising step."""
        return self._hold(self._calls.cancel(run_id))

    def delete(self, run_id: str) -> None:
        """Remove a run and its pictures. Raises Conflict while it is running."""
        self._hold(self._calls.delete(run_id))

    def image(self, run_id: str, index: int) -> bytes:
        """The file of one picture. Raises NotFound."""
        return self._hold(self._calls.image(run_id, index))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._calls.url!r})"

    def _hold(self, talk: Talk[T]) -> T:
        """Carry out a conversation to its end."""
        try:
            step = next(talk)
            while True:
                if isinstance(step, Pause):
                    self._sleep(step.seconds)
                    step = talk.send(None)
                    continue
                try:
                    response = self._http.send(step.request)
                except httpx2.RequestError as failure:
                    step = talk.throw(failure)
                else:
                    step = talk.send(response)
        except StopIteration as end:
            result: T = end.value
            return result


class RunHandle:
    """A run that was submitted."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def wait(self, *, timeout_seconds: float | None = None) -> Result:
        """See Client.wait."""
        return self._client.wait(self.run_id, timeout_seconds=timeout_seconds)

    def get(self) -> RunRecord:
        """See Client.get."""
        return self._client.get(self.run_id)

    def events(self, *, after: int = 0) -> Iterator[RunEvent]:
        """See Client.events."""
        return self._client.events(self.run_id, after=after)

    def cancel(self) -> RunRecord:
        """See Client.cancel."""
        return self._client.cancel(self.run_id)

    def __repr__(self) -> str:
        return f"RunHandle({self.run_id!r})"
