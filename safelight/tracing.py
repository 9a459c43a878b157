"""Spans in OpenTelemetry's form, sent to a collector where one is set. Without one nothing of it is imported or done.

A span never carries what callers wrote, nor a key: only names, ids, counts, times and statuses that are
given one by one.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from safelight.config import TracingSettings
from safelight.errors import ConfigError
from safelight.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OpenTelemetrySpan

log = logging.getLogger("safelight.tracing")

Attributes = Mapping[str, str | int | float]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

CLOSE_SECONDS = 2.0
"""How long a process that ends waits for its last spans to be taken."""

EXPORT_SECONDS = 5.0
SAY_SECONDS = 3600.0

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span:
    """One piece of work under way. This one goes nowhere."""

    def set(self, attributes: Attributes) -> None:
        """Add what has become known."""

    def rename(self, name: str) -> None:
        """Call it what it turned out to be."""

    def add_event(self, name: str) -> None:
        """Mark this moment of it."""

    def fail(self, reason: str) -> None:
        """It went wrong; `reason` is a code or the name of an error, never its text."""


class Tracing:
    """The spans of one process. This one makes none."""

    is_on = False

    def span(
        self, name: str, *, parent: str | None = None, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        """A span for the length of the block: within `parent`, a `traceparent`, or else within the span around it."""
        return nullcontext(_NO_SPAN)

    def inner_span(
        self, name: str, *, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        """A span where there is one around it; none of its own."""
        return nullcontext(_NO_SPAN)

    def traceparent(self) -> str | None:
        """The span around this, as W3C Trace Context writes it."""
        return None

    def close(self) -> None:
        """Send what is left, for a moment."""


_NO_SPAN = Span()
OFF = Tracing()


def open_tracing(settings: TracingSettings, *, process: str) -> Tracing:
    """The tracing of this process. Raises ConfigError as `check_installed` does."""
    check_installed(settings)
    return OFF if settings.endpoint is None else LiveTracing(_open_provider(settings, process))


def check_installed(settings: TracingSettings) -> None:
    """Raises ConfigError when an endpoint is set and the packages for it are missing."""
    if settings.endpoint is None:
        return
    try:
        is_there = all(find_spec(f"opentelemetry.{name}") for name in ("sdk", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        message = "tracing.endpoint is set and OpenTelemetry is not installed: pip install 'safelight[tracing]'"
        raise ConfigError(message)


def read_traceparent(header: str | None) -> str | None:
    """`header` where it is a `traceparent` of version 00."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


def _open_provider(settings: TracingSettings, process: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    theirs = logging.getLogger("opentelemetry")
    theirs.handlers[:], theirs.propagate = [_SaidSeldom()], False
    names = {"service.name": "safelight", "service.version": __version__, "safelight.process": process}
    sampler = ParentBased(TraceIdRatioBased(settings.sample_share))
    provider = TracerProvider(sampler=sampler, resource=Resource.create(names), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class _SaidSeldom(logging.Handler):
    """A collector that is away is worth a line an hour, not a traceback every five seconds."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said_at = -SAY_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        if record.created - self._said_at >= SAY_SECONDS:
            self._said_at = record.created
            log.warning("spans could not be sent", extra={"reason": record.getMessage()[:200]})


class LiveTracing(Tracing):
    """Spans that a provider of OpenTelemetry takes."""

    is_on = True

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("safelight", __version__)
        self._trace = trace

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context=None if parent is None else self._context_of(parent),
            kind=self._trace.SpanKind[kind.upper()],
            attributes=attributes,
            # Their texts may quote a caller.
            record_exception=False,
            set_status_on_exception=False,
        ) as begun:
            span = _LiveSpan(begun)
            try:
                yield span
            except Exception as error:
                span.fail(type(error).__name__)
                raise

    def inner_span(
        self, name: str, *, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        if not self._trace.get_current_span().get_span_context().is_valid:
            return nullcontext(_NO_SPAN)
        return self.span(name, kind=kind, attributes=attributes)

    def traceparent(self) -> str | None:
        around = self._trace.get_current_span().get_span_context()
        if not around.is_valid:
            return None
        return f"00-{around.trace_id:032x}-{around.span_id:016x}-{around.trace_flags:02x}"

    def close(self) -> None:
        # The exporter tries for longer than a process that was told to end has.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _context_of(self, traceparent: str) -> Context:
        _, trace_id, span_id, flags = traceparent.split("-")
        remote = self._trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=self._trace.TraceFlags(int(flags, 16))
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(remote))


class _LiveSpan(Span):
    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def add_event(self, name: str) -> None:
        self._span.add_event(name)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        self._span.set_status(Status(StatusCode.ERROR, reason))
