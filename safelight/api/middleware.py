"""What every request goes through, outermost first: its log line, safe headers, the border for
surprises, the Host check."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.api.answers import respond
from safelight.api.errors import problem_answer, unexpected
from safelight.errors import WrongHost
from safelight.keys import Key, Standing

log = logging.getLogger("safelight.api")
access_log = logging.getLogger("safelight.access")

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""As ASGI has them: names in lower case."""
_TRACE = "safelight.trace"

CountRequest = Callable[[str, str, int, float], None]
"""Method, template of the route, status, seconds."""


@dataclass(slots=True)
class Trace:
    """What the log line of a request will say; filled in by whoever learns it. Owner: the task of the request."""

    status: int = 0
    run_id: str | None = None
    key_prefix: str | None = None
    metered_key: Key | None = None


def trace_of(scope: Scope) -> Trace:
    """The trace of the request with this scope."""
    trace: Trace = scope.setdefault(_TRACE, Trace())
    return trace


class AccessLog:
    """One line for each request: never its query, headers or body, and of its path only the route's template."""

    def __init__(self, app: ASGIApp, *, count: CountRequest, count_open: Callable[[int], None]) -> None:
        self._app = app
        self._count = count
        self._count_open = count_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        trace, started_at = trace_of(scope), time.perf_counter()
        self._count_open(1)

        async def note_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            seconds = time.perf_counter() - started_at
            self._count_open(-1)
            self._count(scope["method"], route_of(scope), trace.status or 499, seconds)
            _write_line(scope, trace, duration_ms=seconds * 1000)


class SafeHeaders:
    """Adds headers that keep browsers from guessing, framing and storing, where a route did not choose its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                chosen = {name for name, _ in headers}
                message["headers"] = [*headers, *(safe for safe in _SAFE_HEADERS if safe[0] not in chosen)]
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)


class QuotaHeaders:
    """Tells a caller whose key has quotas how much is left, as in the IETF's draft on RateLimit header fields."""

    def __init__(self, app: ASGIApp, *, standings: Callable[[Key], Awaitable[Sequence[Standing]]]) -> None:
        self._app = app
        self._standings = standings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            key = trace_of(scope).metered_key
            if message["type"] == "http.response.start" and key is not None:
                headers = MutableHeaders(scope=message)
                for name, value in _quota_headers(await self._look_up(key)).items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)

    async def _look_up(self, key: Key) -> Sequence[Standing]:
        try:
            return await self._standings(key)
        except Exception as error:
            # An answer that is ready is worth more than what these headers say of the next.
            log.warning("quotas could not be looked up", extra={"key_prefix": key.prefix, "reason": str(error)})
            return ()


class ErrorBorder:
    """Turns an exception that nobody meant into a problem document, unless the answer has already begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            # Nobody is left to be answered.
            return
        except Exception as error:
            answer = unexpected(error, where=route_of(scope))
            if scope["type"] != "http" or trace_of(scope).status:
                raise
            await respond(answer)(scope, receive, send)


class HostGuard:
    """Answers only to the server's own names: a name that an attacker points at this machine is not one of them."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._is_open = "*" in allowed_hosts
        self._names = LOOPBACK_NAMES | {_host_name(host) for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open:
            return await self._app(scope, receive, send)
        if _host_name(Headers(scope=scope).get("host", "")) in self._names:
            return await self._app(scope, receive, send)
        message = (
            "this server does not answer to that Host; its operator can add it to the setting server.allowed_hosts"
        )
        await respond(problem_answer(WrongHost(message)))(scope, receive, send)


def _host_name(host: str) -> str:
    """The name in a Host header: without port, without brackets, in lower case, without the root's dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    return name.removesuffix(".")


def _quota_headers(standings: Sequence[Standing]) -> dict[str, str]:
    if not standings:
        return {}
    # The unit of a quota is requests unless it says otherwise.
    units = {each.name: "" if each.name == "requests" else f';qu="{each.name}"' for each in standings}
    policies = (f'"{each.name}";q={each.quota}{units[each.name]};w={each.window_seconds}' for each in standings)
    left = (f'"{each.name}";r={each.num_left};t={math.ceil(each.reset_seconds)}' for each in standings)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


def route_of(scope: Scope) -> str:
    """The template of the route that answered; `-` where none did."""
    return getattr(scope.get("route"), "path", "-")


def _write_line(scope: Scope, trace: Trace, *, duration_ms: float) -> None:
    # A client that hung up before its answer has none; 499 is what proxies write for it.
    extra: dict[str, object] = {
        "method": scope["method"][:20],
        "route": route_of(scope),
        "status": trace.status or 499,
    }
    extra["duration_ms"] = round(duration_ms, 1)
    extra |= {name: value for name in ("run_id", "key_prefix") if (value := getattr(trace, name)) is not None}
    access_log.info("request", extra=extra)
