"""Server-sent events: run events as the text of an event stream, with heartbeats. Knows the format, not the store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from starlette.responses import StreamingResponse

from safelight.api.views import image_url, preview_url, to_iso
from safelight.runs import RunEvent, RunEventKind

EVENT_STREAM = "text/event-stream"
HEARTBEAT_SECONDS = 15.0

_RECONNECT_MS = 2000
_LAST_SEQUENCE = 2**31 - 1
"""PostgreSQL compares with no larger one."""

_SEQUENCE = re.compile(r"[0-9]{1,15}")


def read_last_event_id(header: str | None) -> int:
    """The sequence after which a stream goes on. What was never an id of ours starts from the beginning."""
    return min(int(header), _LAST_SEQUENCE) if header is not None and _SEQUENCE.fullmatch(header) else 0


def event_stream(
    events: AsyncGenerator[RunEvent | None],
    *,
    monotonic: Callable[[], float] = time.monotonic,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> StreamingResponse:
    """A response that sends `events` as they come, and a comment when there was nothing for long."""
    body = _encode(events, monotonic=monotonic, heartbeat_seconds=heartbeat_seconds)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type=EVENT_STREAM, headers=headers)


def format_event(event: RunEvent) -> bytes:
    """One event. Only stored facts have an id: a client that reconnects resumes after the last of them."""
    lines = [f"event: {event.kind.value}"]
    if event.sequence is not None:
        lines.append(f"id: {event.sequence}")
    lines.append("data: " + json.dumps(_members(event)))
    return ("\n".join(lines) + "\n\n").encode()


async def _encode(
    events: AsyncGenerator[RunEvent | None], *, monotonic: Callable[[], float], heartbeat_seconds: float
) -> AsyncIterator[bytes]:
    yield f"retry: {_RECONNECT_MS}\n\n".encode()
    sent_at = monotonic()
    # A client that hangs up ends this generator; the source, which listens for hints, must end with it.
    async with aclosing(events):
        async for event in events:
            if event is not None:
                yield format_event(event)
            elif monotonic() - sent_at >= heartbeat_seconds:
                yield b": still here\n\n"
            else:
                continue
            sent_at = monotonic()


def _members(event: RunEvent) -> dict[str, object]:
    has_image = event.image_index is not None
    return {
        "run_id": event.run_id,
        "kind": event.kind.value,
        "at": to_iso(event.at),
        "steps_done": event.steps_done,
        "steps_total": event.steps_total,
        "eta_seconds": event.eta_seconds,
        "image_index": event.image_index,
        "image_url": image_url(event.run_id, event.image_index or 0) if has_image else None,
        "preview_url": preview_url(event.run_id) if event.kind is RunEventKind.PREVIEW else None,
        "error": {"code": event.error.code, "message": event.error.message} if event.error else None,
    }
