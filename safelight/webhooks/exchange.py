"""One HTTP exchange with a webhook endpoint: a POST, bounded in time and in bytes, whatever the other side does.

Redirects are not followed, proxy variables are not read, nothing is decompressed, no connection is kept.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpcore2
import httpx2

from safelight.webhooks.targets import DeniedTarget, parse_target

MAX_RESPONSE_BYTES = 64 * 1024
"""Read from a response at most; a longer one is cut off, which does not change what its status says."""

EXCERPT_BYTES = 1024
"""Kept of a response, for administrators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one exchange: a status, or an error sentence, or both when the answer broke off after its status."""

    status_code: int | None = None
    error: str | None = None
    excerpt: str = ""
    retry_after_seconds: float | None = None
    is_denied: bool = False

    @property
    def is_success(self) -> bool:
        """Only a 2xx acknowledges; once it was received, a body that breaks off afterwards takes nothing back."""
        return self.status_code is not None and 200 <= self.status_code < 300


class Poster:
    """Posts bodies through `network`, which decides where connections may go. One per process, closed with `close`."""

    def __init__(
        self,
        network: httpcore2.AsyncNetworkBackend,
        *,
        timeout_seconds: float,
        now: Callable[[], float],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._now = now
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or httpx2.create_ssl_context(trust_env=False),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=network,
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send `body` and read the answer, all within the time limit. What goes wrong is in the answer;
        nothing is raised."""
        try:
            target = parse_target(url)
        except ValueError as error:
            return Answer(error=f"the URL {error}", is_denied=True)
        received = _Received()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._exchange(target, headers, body, received)
        except TimeoutError:
            return self._answer(received, f"no complete answer within {self._timeout_seconds:g} s")
        except DeniedTarget as error:
            return Answer(error=str(error), is_denied=True)
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            httpcore2.UnsupportedProtocol,
        ) as error:
            return self._answer(received, _sentence(error))
        return self._answer(received, None)

    async def close(self) -> None:
        await self._pool.aclose()

    async def _exchange(self, url: httpx2.URL, headers: Mapping[str, str], body: bytes, received: _Received) -> None:
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent: list[tuple[bytes | str, bytes | str]] = [("host", url.netloc), ("connection", "close"), ("accept", "*/*")]
        sent += headers.items()
        async with self._pool.stream("POST", target, headers=sent, content=body) as response:
            received.status_code = response.status
            received.headers = httpx2.Headers(response.headers)
            async for chunk in response.aiter_stream():
                received.body += chunk[: MAX_RESPONSE_BYTES - len(received.body)]
                if len(received.body) >= MAX_RESPONSE_BYTES:
                    break

    def _answer(self, received: _Received, error: str | None) -> Answer:
        status = received.status_code
        if status is not None and 300 <= status < 400:
            error = "redirects are not followed; register the final address"
        retry_after = received.headers.get("retry-after") if status in (429, 503) else None
        return Answer(
            status_code=status,
            error=error,
            # PostgreSQL keeps no NUL in a text.
            excerpt=received.body[:EXCERPT_BYTES].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}"),
            retry_after_seconds=None if retry_after is None else parse_retry_after(retry_after, self._now()),
        )


@dataclass(slots=True)
class _Received:
    """What has come in so far, so that a time limit loses none of it."""

    status_code: int | None = None
    headers: httpx2.Headers = field(default_factory=httpx2.Headers)
    body: bytearray = field(default_factory=bytearray)


def parse_retry_after(text: str, now: float) -> float | None:
    """Seconds from `now` that a Retry-After header names, as a number or a date; None when it names neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _sentence(error: Exception) -> str:
    """Why the exchange broke, for people. Without addresses: callers read it too."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate was not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or 'the connection was closed'}"
        if isinstance(cause, OSError) and cause.errno:
            return f"the connection failed: {os.strerror(cause.errno)}"
    if isinstance(error, httpcore2.TimeoutException):
        return "the host did not accept the connection in time"
    return str(error) or "the connection was closed before an answer came"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
