from __future__ import annotations

import json
import time

import pytest
import standardwebhooks
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import ConfigError
from safelight.webhooks.signing import new_secret, sign

BODY = json.dumps({"run_id": "r", "result": ["ä"]}, ensure_ascii=False).encode()


def headers(signature: str, timestamp: int, message_id: str = "msg_1") -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def test_the_official_library_verifies_what_we_sign() -> None:
    secret, now = new_secret(), int(time.time())
    official = standardwebhooks.Webhook(secret)
    assert official.verify(BODY, headers(sign([secret], "msg_1", now, BODY), now)) == json.loads(BODY)


def test_the_example_of_the_specification_has_its_signature() -> None:
    # The vector that the reference implementations of Standard Webhooks share.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    assert sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_during_a_rotation_the_old_and_the_new_secret_both_verify() -> None:
    old, new, now = new_secret(), new_secret(), int(time.time())
    signature = sign([new, old], "msg_1", now, BODY)
    assert signature.count("v1,") == 2
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(BODY, headers(signature, now))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(new_secret()).verify(BODY, headers(signature, now))


@pytest.mark.parametrize("tampered", ["body", "id", "timestamp"])
def test_nothing_that_is_signed_can_be_changed(tampered: str) -> None:
    secret, now = new_secret(), int(time.time())
    signature = sign([secret], "msg_1", now, BODY)
    body = BODY + b" " if tampered == "body" else BODY
    sent = headers(signature, now + (tampered == "timestamp"), "msg_2" if tampered == "id" else "msg_1")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body, sent, json_parse=False)


@settings(deadline=None)  # a busy machine is no finding
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), st.text())
def test_any_id_and_any_body_verify(message_id: str, text: str) -> None:
    secret, now, body = new_secret(), int(time.time()), text.encode()
    signature = sign([secret], message_id, now, body)
    standardwebhooks.Webhook(secret).verify(body, headers(signature, now, message_id), json_parse=False)


def test_a_secret_without_padding_is_the_same_secret() -> None:
    secret = new_secret()
    assert sign([secret], "m", 1, b"") == sign([secret.rstrip("=")], "m", 1, b"")


@pytest.mark.parametrize("secret", ["whsec_!!!", "whsec_", "whsec_c2hvcnQ=", ""])
def test_a_garbled_or_short_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="secret"):
        sign([secret], "m", 1, b"")


def test_signing_with_no_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        sign([], "m", 1, b"")
