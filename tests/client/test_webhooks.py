from __future__ import annotations

import json
import time
from base64 import b64encode
from datetime import UTC, datetime

import pytest
import standardwebhooks

from safelight.client import InvalidWebhook, verify_webhook
from safelight.envelope import webhook_body, with_pictures
from safelight.runs import Run, RunError, RunParams, RunStatus
from safelight.webhooks.signing import new_secret, sign

NOW = 1_800_000_000


def run(status: RunStatus, error: RunError | None = None) -> Run:
    return Run(
        id="r-1",
        project="default",
        key_id=None,
        deployment="pinhole",
        deployment_version=1,
        params=RunParams(prompt="a lamp"),
        status=status,
        created_at=0,
        run_time_ms=12.5,
        error=error,
    )


def headers(secret: str, body: bytes, timestamp: int = NOW) -> dict[str, str]:
    return {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": sign([secret], "evt_1", timestamp, body),
    }


def test_a_delivery_of_this_server_is_verified_and_read() -> None:
    secret, body = new_secret(), with_pictures(webhook_body(run(RunStatus.SUCCEEDED)), [b"one", b"two"])
    message = verify_webhook(secret, headers(secret, body), body, now=lambda: NOW)
    assert (message.event_id, message.run_id, message.status_code, message.code) == ("evt_1", "r-1", 200, None)
    assert message.result is not None
    assert message.result.image_bytes == (b"one", b"two")


def test_a_failure_is_read_with_its_code_and_reason() -> None:
    failed = run(RunStatus.FAILED, RunError("out_of_memory", "ask for a smaller picture"))
    secret, body = new_secret(), webhook_body(failed)
    message = verify_webhook(secret, headers(secret, body), body, now=lambda: NOW)
    assert (message.code, message.message, message.result) == ("out_of_memory", "ask for a smaller picture", None)


def test_what_the_official_library_signs_is_verified() -> None:
    secret, body = new_secret(), webhook_body(run(RunStatus.CANCELLED))
    now = datetime.now(UTC)
    signature = standardwebhooks.Webhook(secret).sign("evt_9", now, body.decode())
    sent = {"webhook-id": "evt_9", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    assert verify_webhook(secret, sent, body.decode()).event_id == "evt_9"


def test_either_side_may_be_in_a_rotation() -> None:
    old, new, body = new_secret(), new_secret(), webhook_body(run(RunStatus.CANCELLED))
    both = headers(new, body) | {"Webhook-Signature": "v2,other " + sign([new, old], "evt_1", NOW, body)}
    verify_webhook(old, both, body, now=lambda: NOW)
    verify_webhook([old, new], headers(new, body), body, now=lambda: NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Webhook-Id": "evt_2"}, "no signature"),
        ({"Webhook-Timestamp": str(NOW - 1)}, "no signature"),
        ({"Webhook-Timestamp": str(NOW - 301)}, "too old"),
        ({"Webhook-Timestamp": str(NOW + 301)}, "far in the future"),
        ({"Webhook-Timestamp": "yesterday"}, "not a number"),
        ({"Webhook-Timestamp": "9" * 400}, "not a number"),
        ({"Webhook-Signature": ""}, "no signature"),
        ({"Webhook-Signature": "v1,"}, "no signature"),
        ({"Webhook-Signature": "v1,%%% v1 ,,"}, "no signature"),
        ({"Webhook-Signature": "v1," + b64encode(bytes(32)).decode()}, "no signature"),
    ],
)
def test_what_was_changed_is_refused(change: dict[str, str], reason: str) -> None:
    secret, body = new_secret(), webhook_body(run(RunStatus.CANCELLED))
    with pytest.raises(InvalidWebhook, match=reason):
        verify_webhook(secret, headers(secret, body) | change, body, now=lambda: NOW)


@pytest.mark.parametrize("missing", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    secret, body = new_secret(), b"{}"
    sent = {name: value for name, value in headers(secret, body).items() if name != missing}
    with pytest.raises(InvalidWebhook, match=missing.lower()):
        verify_webhook(secret, sent, body, now=lambda: NOW)


def test_a_changed_body_and_a_wrong_secret_are_refused() -> None:
    secret, body = new_secret(), webhook_body(run(RunStatus.CANCELLED))
    with pytest.raises(InvalidWebhook):
        verify_webhook(secret, headers(secret, body), body + b" ", now=lambda: NOW)
    with pytest.raises(InvalidWebhook):
        verify_webhook(new_secret(), headers(secret, body), body, now=lambda: NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%"])
def test_an_empty_secret_verifies_nothing(secret: str) -> None:
    with pytest.raises(InvalidWebhook, match="secret"):
        verify_webhook(secret, headers(new_secret(), b"{}"), b"{}", now=lambda: NOW)


def test_no_secrets_verify_nothing() -> None:
    with pytest.raises(InvalidWebhook):
        verify_webhook([], headers(new_secret(), b"{}"), b"{}", now=lambda: NOW)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"{}", b"\xff", json.dumps({"run_id": "r", "status_code": 200}).encode()]
)
def test_a_signed_body_that_is_not_ours_is_refused(body: bytes) -> None:
    secret = new_secret()
    with pytest.raises(InvalidWebhook, match="cannot be read"):
        verify_webhook(secret, headers(secret, body), body, now=lambda: NOW)


def test_an_old_message_is_taken_by_whoever_tolerates_it() -> None:
    secret, body = new_secret(), webhook_body(run(RunStatus.CANCELLED))
    old = int(time.time()) - 3600
    verify_webhook(secret, headers(secret, body, old), body, tolerance_seconds=7200)
