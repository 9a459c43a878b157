"""Signatures of deliveries: Standard Webhooks 1.0, the symmetric scheme. Verification lives in `client/webhooks.py`."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence

from safelight.errors import ConfigError

PREFIX = "whsec_"
"""What a signing secret starts with; the rest is base64 of the key."""

_MIN_KEY_BYTES = 24
_MAX_KEY_BYTES = 64


def new_secret() -> str:
    """A fresh signing secret of 32 random bytes."""
    return PREFIX + b64encode(secrets.token_bytes(32)).decode()


def sign(signing_secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the `webhook-signature` header: one `v1,` signature per secret, newest secret first.

    A receiver accepts the message when any of them matches, so two secrets make a rotation without a gap.
    Raises ConfigError when there is no secret or one is garbled.
    """
    if not signing_secrets:
        raise ConfigError("a delivery needs at least one signing secret")
    # By parts, so that a body of many megabytes is not copied.
    head = f"{message_id}.{timestamp}.".encode()
    signatures = []
    for secret in signing_secrets:
        mac = hmac.new(_key_of(secret), head, hashlib.sha256)
        mac.update(body)
        signatures.append("v1," + b64encode(mac.digest()).decode())
    return " ".join(signatures)


def _key_of(secret: str) -> bytes:
    text = secret.removeprefix(PREFIX)
    try:
        key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ConfigError("a webhook signing secret must be whsec_ followed by base64") from error
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ConfigError(f"a webhook signing secret must hold {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes")
    return key
