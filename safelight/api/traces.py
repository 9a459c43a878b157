"""A span for each request, within the trace its caller names; around everything else, where tracing is on."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.api.middleware import route_of, trace_of
from safelight.tracing import Tracing, read_traceparent

UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for every few seconds, by machines."""


class TracedRequests:
    """Of an address a span has the route's template, never what stands in its place, nor query or headers."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            return await self._app(scope, receive, send)
        trace, method = trace_of(scope), scope["method"][:20]
        parent = read_traceparent(Headers(scope=scope).get("traceparent"))
        with self._tracing.span(
            method, parent=parent, kind="server", attributes={"http.request.method": method}
        ) as span:
            await self._app(scope, receive, send)
            status, route = trace.status or 499, route_of(scope)
            span.rename(f"{method} {route}")
            span.set({"http.route": route, "http.response.status_code": status})
            if trace.run_id is not None:
                span.set({"safelight.run_id": trace.run_id})
            if status >= 500:
                span.fail(str(status))
