"""Every call as a conversation: what to send, when to pause, what the answer means. No I/O: the two
clients carry it out.

A conversation is a generator. It yields Send and Pause; the driver sends back the answer, or throws the
transport's error in.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

import httpx2

from safelight.client.answers import (
    Result,
    RunRecord,
    error_of,
    read_page,
    read_result,
    read_run,
    read_run_id,
    result_of,
)
from safelight.client.errors import error_from, unreachable
from safelight.client.feed import EventFeed
from safelight.errors import ConfigError, FieldError, InvalidFields, NotFound, TryLater, Unauthorized, WaitTimeout
from safelight.version import __version__

T = TypeVar("T")

FIRST_LOOK_SECONDS = 0.1
LONGEST_LOOK_SECONDS = 2.0
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 45.0
"""An event stream that says nothing for this long has lost its connection: heartbeats come three times as often."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send this and read the whole answer."""

    request: httpx2.Request


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Talk: TypeAlias = Generator[Send | Pause, httpx2.Response | None, T]


class PredictParams(TypedDict, total=False):
    """What a call may name besides its prompt; the deployment's defaults stand for the rest. A picture is a file's
    bytes, or `run:<id>/<index>`."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    num_images_per_prompt: int
    negative_prompt: str
    deadline_ms: int
    seed: int
    sampler: str
    spacing: str
    output_format: str
    deterministic: bool
    init_image: bytes | str
    strength: float
    mask: bytes | str
    loras: list[dict[str, str | float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often a client tries. `read_seconds` must be more than the server's `sync_timeout`."""

    read_seconds: float = 300.0
    max_retries: int = 4
    max_retry_after_seconds: float = 60.0


def _checked_url(url: str) -> str:
    try:
        base = httpx2.URL(url.rstrip("/"))
    except httpx2.InvalidURL:
        base = httpx2.URL()
    if base.scheme not in ("http", "https") or not base.host:
        raise ConfigError(f"the server's URL must look like http://127.0.0.1:8000, not {url!r}")
    return str(base)


class Calls:
    """The calls to one server with one key. Immutable; shared by both clients."""

    def __init__(
        self,
        url: str,
        key: str,
        patience: Patience,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = _checked_url(url)
        if not (key.isascii() and key.isprintable()):
            raise Unauthorized("this is not a whole API key: it holds characters that no key has")
        self._headers = {"authorization": f"Bearer {key}", "user-agent": f"Safelight-Client/{__version__}"}
        self._patience = patience
        self._monotonic = monotonic
        self._jitter = jitter

    def predict(
        self,
        deployment: str,
        prompt: str,
        params: Mapping[str, object],
        *,
        idempotency_key: str | None,
        timeout_seconds: float | None,
    ) -> Talk[Result]:
        """Wait for the pictures, however often connection or server let go in between."""
        if params.get("webhook_endpoint") is not None:
            raise InvalidFields(
                [FieldError("webhook_endpoint", "is for `submit`: this call waits for the pictures itself")]
            )
        deadline = self._deadline(timeout_seconds)
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        body = _body(prompt, params)
        try:
            response = yield from self._ask("POST", _predict_path(deployment), deadline, headers=headers, body=body)
        except (TryLater, WaitTimeout) as error:
            # The run is there and goes on, or has ended and says how.
            if error.run_id is None:
                raise
            return (yield from self._wait(error.run_id, deadline))
        if response.status_code == 202:
            return (yield from self._wait(read_run_id(response), deadline))
        return read_result(response)

    def submit(
        self, deployment: str, prompt: str, params: Mapping[str, object], *, idempotency_key: str | None
    ) -> Talk[str]:
        """Leave a run and take its id."""
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4()), "prefer": "respond-async"}
        response = yield from self._ask("POST", _predict_path(deployment), headers=headers, body=_body(prompt, params))
        return read_run_id(response)

    def wait(self, run_id: str, *, timeout_seconds: float | None) -> Talk[Result]:
        """Look at the run until it has ended, then fetch its pictures. Raises RunFailed, Conflict, WaitTimeout."""
        return self._wait(run_id, self._deadline(timeout_seconds))

    def get(self, run_id: str, *, deadline: float = math.inf) -> Talk[RunRecord]:
        return read_run((yield from self._ask("GET", _run_path(run_id), deadline)))

    def cancel(self, run_id: str) -> Talk[RunRecord]:
        return read_run((yield from self._ask("POST", _run_path(run_id, "cancel"))))

    def delete(self, run_id: str) -> Talk[None]:
        yield from self._ask("DELETE", _run_path(run_id))

    def image(self, run_id: str, index: int, *, deadline: float = math.inf) -> Talk[bytes]:
        return (yield from self._ask("GET", _run_path(run_id, "images", str(index)), deadline)).content

    def page(
        self, which: Mapping[str, str | int | None], times: Mapping[str, datetime | None], cursor: str | None
    ) -> Talk[tuple[list[RunRecord], str | None]]:
        """One page of runs, newest first, and the cursor of the next."""
        moments = {name: moment.isoformat() if moment else None for name, moment in times.items()}
        query = {**which, **moments, "cursor": cursor}
        known = {name: value for name, value in query.items() if value is not None}
        return read_page((yield from self._ask("GET", "/runs", query=known)))

    def feed(self, run_id: str, *, after: int) -> EventFeed:
        """The events of a run past the sequence `after`, over as many connections as it takes."""

        def request(headers: Mapping[str, str]) -> httpx2.Request:
            accepted = {**headers, "accept": "text/event-stream"}
            return self._request("GET", _run_path(run_id, "events"), SILENCE_SECONDS, headers=accepted)

        return EventFeed(
            request,
            self.pause_before_retry,
            max_retries=self._patience.max_retries,
            max_retry_after_seconds=self._patience.max_retry_after_seconds,
            after=after,
        )

    def pause_before_retry(self, num_tries: int, error: TryLater) -> float:
        """What the server asked for, or a wait that doubles, whichever is longer; with jitter."""
        pause: float = max(error.retry_after_seconds, 0.25 * 2.0**num_tries)
        return pause * (1 + 0.25 * self._jitter())

    def _wait(self, run_id: str, deadline: float) -> Talk[Result]:
        look_seconds = FIRST_LOOK_SECONDS
        while not (record := (yield from self.get(run_id, deadline=deadline))).status.has_ended:
            if self._monotonic() >= deadline:
                raise WaitTimeout(f"the run {run_id} goes on; wait for it again by its id", run_id=run_id)
            likely = math.inf if record.eta_seconds is None else max(FIRST_LOOK_SECONDS, record.eta_seconds)
            yield Pause(max(0.0, min(look_seconds, likely, deadline - self._monotonic())))
            look_seconds = min(1.5 * look_seconds, LONGEST_LOOK_SECONDS)
        if (error := error_of(record)) is not None:
            raise error
        if len(record.images) < record.params.num_images_per_prompt:
            raise NotFound("the pictures of the run have expired", code="image_not_found", run_id=run_id)
        image_bytes = []
        for image in record.images:
            image_bytes.append((yield from self.image(run_id, image.index, deadline=deadline)))
        return result_of(record, image_bytes)

    def _ask(
        self,
        method: str,
        path: str,
        deadline: float = math.inf,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Talk[httpx2.Response]:
        """The answer of success to a request that may be repeated, repeating it while that is worth it."""
        for num_tries in itertools.count(1):
            read_seconds = min(self._patience.read_seconds, max(0.05, deadline - self._monotonic()))
            request = self._request(method, path, read_seconds, headers=headers, query=query, body=body)
            try:
                return (yield from _once(request))
            except TryLater as error:
                if self._monotonic() >= deadline:
                    raise WaitTimeout("no answer in the given time; a run may go on", run_id=error.run_id) from error
                pause = self.pause_before_retry(num_tries, error)
                is_too_long = error.retry_after_seconds > self._patience.max_retry_after_seconds
                if error.run_id is not None or num_tries > self._patience.max_retries or is_too_long:
                    raise
            yield Pause(min(pause, max(0.0, deadline - self._monotonic())))
        raise AssertionError("the loop above has no end")

    def _request(
        self,
        method: str,
        path: str,
        read_seconds: float,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> httpx2.Request:
        sent = self._headers | dict(headers or {})
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["content-type"] = "application/json"
        timeout = httpx2.Timeout(read_seconds, connect=min(CONNECT_SECONDS, read_seconds)).as_dict()
        url = httpx2.URL(self.url + path, params=query) if query else httpx2.URL(self.url + path)
        return httpx2.Request(method, url, headers=sent, content=content, extensions={"timeout": timeout})

    def _deadline(self, timeout_seconds: float | None) -> float:
        return math.inf if timeout_seconds is None else self._monotonic() + timeout_seconds


def _body(prompt: str, params: Mapping[str, object]) -> dict[str, object]:
    """The JSON body of a call; None means the deployment's default, so it is left out. Bytes are sent as base64."""
    given = {name: value for name, value in params.items() if value is not None}
    texts = {name: b64encode(value).decode() for name, value in given.items() if isinstance(value, bytes)}
    return {"prompt": prompt} | given | texts


def _once(request: httpx2.Request) -> Talk[httpx2.Response]:
    try:
        response = yield Send(request)
    except httpx2.RequestError as failure:
        raise unreachable(request, failure) from failure
    assert response is not None, "the driver answers Send with a response"
    if not response.is_success:
        raise error_from(response)
    return response


def _predict_path(deployment: str) -> str:
    return f"/{quote(deployment, safe='')}/predict"


def _run_path(run_id: str, *rest: str) -> str:
    return "/".join(("/runs", *(quote(part, safe="") for part in (run_id, *rest))))
