"""For those who receive deliveries: is this message from my server, and what does it say?"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safelight.client.answers import Result, read_images
from safelight.client.errors import InvalidWebhook


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookMessage:
    """The end of a run. `event_id` is the same on every try: whoever remembers it handles each end once.

    `status_code` is 200 and `result` is there when the run succeeded; else `code` and `message` say why not.
    """

    event_id: str
    run_id: str
    status_code: int
    message: str
    code: str | None
    result: Result | None


def verify_webhook(
    secret: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes | str,
    tolerance_seconds: float = 300.0,
    *,
    now: Callable[[], float] = time.time,
) -> WebhookMessage:
    """Check a delivery's signature and age, and read it. `body` is what arrived, untouched; several
    secrets may be given.

    Raises InvalidWebhook.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    received = body.encode() if isinstance(body, str) else body
    named = {name.lower(): value for name, value in headers.items()}
    try:
        event_id, timestamp, signatures = (named[f"webhook-{part}"] for part in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise InvalidWebhook(f"the header {error.args[0]} is missing") from error
    _check_age(timestamp, tolerance_seconds, now())
    signed = f"{event_id}.{timestamp}.".encode() + received
    expected = [hmac.new(_key_of(each), signed, hashlib.sha256).digest() for each in secrets]
    given = [_decode(each.removeprefix("v1,")) for each in signatures.split() if each.startswith("v1,")]
    if not any(hmac.compare_digest(one, other) for one in expected for other in given):
        raise InvalidWebhook("no signature of the message matches; check the secret, and that the body is untouched")
    return _read(event_id, received)


def _check_age(timestamp: str, tolerance_seconds: float, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise InvalidWebhook("the header webhook-timestamp is not a number of seconds")
    age_seconds = now - int(timestamp)
    if abs(age_seconds) > tolerance_seconds:
        when = "old" if age_seconds > 0 else "far in the future"
        raise InvalidWebhook(f"the message is too {when}; check this machine's clock, or refuse a replay")


def _key_of(secret: str) -> bytes:
    key = _decode(secret.removeprefix("whsec_"))
    if not key:
        raise InvalidWebhook("the secret is not whsec_ followed by base64")
    return key


def _decode(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _read(event_id: str, body: bytes) -> WebhookMessage:
    try:
        members = json.loads(body)
        run_id, status_code = str(members["run_id"]), int(members["status_code"])
        result = None
        if status_code == 200:
            pictures = read_images(members)
            result = Result(run_id=run_id, run_time_ms=float(members["run_time_ms"]), image_bytes=pictures)
        return WebhookMessage(
            event_id=event_id,
            run_id=run_id,
            status_code=status_code,
            message=str(members["message"]),
            code=members.get("code"),
            result=result,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidWebhook(f"the signature is right, but the message cannot be read: {error!r}") from error
