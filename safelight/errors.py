"""Every error Safelight raises on purpose, as one tree. No HTTP here: `api/errors.py` turns codes into statuses.

The leaves are named by what the reader can do about them:

    SafelightError
    ├── InvalidRequest           change the request
    │   ├── MalformedBody            the body is not a JSON object
    │   ├── UnsupportedMediaType     the body is not declared as JSON
    │   ├── BodyTooLarge             the body is over the limit
    │   ├── ReceiveTimeout           the body took too long to arrive
    │   ├── WrongHost                the Host header is not one of the server's names
    │   ├── InvalidFields            one or more fields are wrong
    │   └── IdempotencyMismatch      the idempotency key was used with another body
    ├── Unauthorized             send a valid key
    ├── Forbidden                use a key with the scope
    ├── NotFound                 name something that exists
    ├── Conflict                 the thing is in the wrong state for this
    ├── TryLater                 send the same again later
    │   ├── Overloaded               too many runs wait already
    │   ├── RateLimited              the key has used what it may for now
    │   ├── DeadlineUnreachable      what waits already takes until after the deadline
    │   ├── ModelUnavailable         the model cannot be loaded now
    │   ├── Stopping                 the server is going down
    │   └── StorageFull              the disk is full
    ├── WaitTimeout              the run goes on; ask for it by its id
    ├── RunFailed                the run ended without its pictures
    ├── LostClaim                another worker has the run now (internal)
    ├── ModelError               the weights cannot be used as they are
    └── ConfigError              the settings are wrong
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: which, and what would be right."""

    field: str
    message: str


class SafelightError(Exception):
    """Root of the tree. `code` is stable and documented; `message` is for people and names the remedy."""

    code = "internal_error"
    is_retryable = False

    def __init__(self, message: str, *, code: str | None = None, run_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.run_id = run_id
        if code is not None:
            self.code = code


class InvalidRequest(SafelightError):
    code = "invalid_request"


class MalformedBody(InvalidRequest):
    code = "malformed_body"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class ReceiveTimeout(InvalidRequest):
    code = "receive_timeout"


class WrongHost(InvalidRequest):
    code = "wrong_host"


class InvalidFields(InvalidRequest):
    """One or more fields are wrong; `fields` has an entry for each."""

    code = "invalid_fields"

    def __init__(self, fields: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{wrong.field}: {wrong.message}" for wrong in fields))
        self.fields = tuple(fields)


class IdempotencyMismatch(InvalidRequest):
    code = "idempotency_mismatch"


class Unauthorized(SafelightError):
    code = "unauthorized"


class Forbidden(SafelightError):
    code = "forbidden"


class NotFound(SafelightError):
    """What was named does not exist, or belongs to another project. `code` says what: `run_not_found`, ..."""

    code = "not_found"


class Conflict(SafelightError):
    code = "conflict"


class TryLater(SafelightError):
    """The same request may succeed after `retry_after_seconds`."""

    code = "try_later"
    is_retryable = True

    def __init__(
        self, message: str, *, retry_after_seconds: float = 5.0, code: str | None = None, run_id: str | None = None
    ) -> None:
        super().__init__(message, code=code, run_id=run_id)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(TryLater):
    code = "overloaded"


class RateLimited(TryLater):
    code = "rate_limited"


class DeadlineUnreachable(TryLater):
    code = "deadline_unreachable"


class ModelUnavailable(TryLater):
    code = "model_unavailable"


class Stopping(TryLater):
    code = "stopping"


class StorageFull(TryLater):
    code = "storage_full"


class WaitTimeout(SafelightError):
    code = "wait_timeout"


class RunFailed(SafelightError):
    """A run ended without its pictures. `code` is one of the run error codes in docs/errors.md."""

    code = "run_failed"


class LostClaim(SafelightError):
    """The fence of this claim is no longer the run's: whatever it wanted to write was thrown away."""

    code = "lost_claim"


class ModelError(SafelightError):
    """The weights are missing, unsafe or of a kind this version cannot run."""

    code = "model_error"


class ConfigError(SafelightError):
    code = "config_error"
