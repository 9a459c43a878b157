"""Following the events of a run over connections that drop: where to resume, when to give up. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx2

from safelight.client.answers import read_event
from safelight.client.errors import DEFAULT_RETRY_SECONDS, ServerUnreachable, error_from, unreachable
from safelight.errors import TryLater
from safelight.runs import RunEvent, RunEventKind

_END_KINDS = frozenset({RunEventKind.SUCCEEDED, RunEventKind.FAILED, RunEventKind.CANCELLED})


class EventFeed:
    """The state of one follower. The client opens `request()`, hands in what comes, and pauses when a
    connection ends."""

    def __init__(
        self,
        request: Callable[[Mapping[str, str]], httpx2.Request],
        pause_before_retry: Callable[[int, TryLater], float],
        *,
        max_retries: int,
        max_retry_after_seconds: float,
        after: int,
    ) -> None:
        self._build = request
        self._request: httpx2.Request | None = None
        self._pause_before_retry = pause_before_retry
        self._max_retries = max_retries
        self._max_retry_after_seconds = max_retry_after_seconds
        self._seen = after
        self._num_failures = 0
        self.has_ended = False

    def request(self) -> httpx2.Request:
        """What to open next: the stream from behind the last event seen."""
        self._request = self._build({"last-event-id": str(self._seen)} if self._seen else {})
        return self._request

    def read(self, sent: httpx2.ServerSentEvent) -> RunEvent | None:
        """The event to hand on; None for one that was seen before or is of a kind unknown here."""
        event = read_event(sent)
        if event is None or (event.sequence is not None and event.sequence <= self._seen):
            return None
        self._num_failures = 0
        self._seen = event.sequence or self._seen
        self.has_ended = event.kind in _END_KINDS
        return event

    def pause_after(self, response: httpx2.Response) -> float:
        """How long to wait after a connection that was closed in order. Raises what a refused one stands for."""
        if self.has_ended or response.status_code == 204:
            self.has_ended = True
            return 0.0
        if response.is_success:
            message = "the event stream ended before the run did"
            return self._next_pause(ServerUnreachable(message, retry_after_seconds=DEFAULT_RETRY_SECONDS / 2))
        error = error_from(response)
        if not isinstance(error, TryLater):
            raise error
        return self._next_pause(error)

    def pause_after_break(self, failure: httpx2.RequestError) -> float:
        """How long to wait after a connection that broke or never was. Raises ServerUnreachable after too many."""
        assert self._request is not None, "only an opened connection breaks"
        return self._next_pause(unreachable(self._request, failure), cause=failure)

    def _next_pause(self, error: TryLater, cause: Exception | None = None) -> float:
        self._num_failures += 1
        if self._num_failures > self._max_retries or error.retry_after_seconds > self._max_retry_after_seconds:
            raise error from cause
        return self._pause_before_retry(self._num_failures, error)
