"""What only a client can meet, and how a server's answer becomes an error of the common tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from safelight.errors import (
    Conflict,
    FieldError,
    Forbidden,
    InvalidFields,
    InvalidRequest,
    NotFound,
    Overloaded,
    RunFailed,
    SafelightError,
    TryLater,
    Unauthorized,
    WaitTimeout,
)

DEFAULT_RETRY_SECONDS = 1.0
"""The wait when the server names none."""

_BY_STATUS: tuple[tuple[int, type[SafelightError]], ...] = (
    (401, Unauthorized),
    (403, Forbidden),
    (404, NotFound),
    (409, Conflict),
    (429, Overloaded),
    (502, TryLater),
    (503, TryLater),
    (504, TryLater),
)


class ServerUnreachable(TryLater):
    """No connection, or it broke before the answer was whole."""

    code = "server_unreachable"


class UnexpectedAnswer(SafelightError):
    """The answer is not one that a Safelight server gives: look at the URL, and at what stands between."""

    code = "unexpected_answer"


class InvalidWebhook(SafelightError):
    """The message is not from the holder of the secret, was changed on the way, or is too old. Answer it with 400."""

    code = "invalid_webhook"


def unreachable(request: httpx2.Request, failure: Exception) -> ServerUnreachable:
    """The error of a request that got no whole answer."""
    reason = str(failure) or type(failure).__name__
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    return ServerUnreachable(f"no answer from {where}: {reason}", retry_after_seconds=DEFAULT_RETRY_SECONDS / 2)


def error_from(response: httpx2.Response) -> SafelightError:
    """The error that a read answer without success stands for."""
    members = _members_of(response)
    code, run_id = _text(members.get("code")), _text(members.get("run_id"))
    message = _text(members.get("message")) or _text(members.get("detail"))
    if message is None:
        message = f"{response.request.method} {response.request.url} was answered with HTTP {response.status_code}"
    if code == InvalidFields.code and (fields := _fields(members.get("errors"))):
        return InvalidFields(fields)
    kind = _kind(response.status_code, code, run_id)
    if issubclass(kind, TryLater):
        seconds = _retry_after(response)
        return kind(message, retry_after_seconds=seconds, code=code, run_id=run_id)
    return kind(message, code=code, run_id=run_id)


def _kind(status: int, code: str | None, run_id: str | None) -> type[SafelightError]:
    if status == 500 and run_id is not None:
        return RunFailed
    # A gateway's own 504 has no run; the server's always has one.
    if status == 504 and run_id is not None:
        return WaitTimeout
    by_code = {kind.code: kind for kind in _tree(SafelightError)}
    if code in by_code:
        return by_code[code]
    by_status = dict(_BY_STATUS)
    if status in by_status:
        return by_status[status]
    if 400 <= status < 500:
        return InvalidRequest
    return SafelightError if code is not None else UnexpectedAnswer


def _tree(root: type[SafelightError]) -> Iterator[type[SafelightError]]:
    """Leaves first, so that a class wins its code over those that only inherit it."""
    for kind in root.__subclasses__():
        yield from _tree(kind)
    yield root


def _members_of(response: httpx2.Response) -> dict[str, object]:
    try:
        members = json.loads(response.content)
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _fields(errors: object) -> list[FieldError]:
    entries = errors if isinstance(errors, list) else []
    return [
        FieldError(str(entry.get("field")), str(entry.get("message"))) for entry in entries if isinstance(entry, dict)
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date - datetime.now(UTC)).total_seconds()) if date.tzinfo else DEFAULT_RETRY_SECONDS
    except (ValueError, OverflowError):
        return DEFAULT_RETRY_SECONDS
