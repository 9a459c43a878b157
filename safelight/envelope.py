"""The JSON bodies of the predict endpoint and of webhooks, as bytes. Pure: the same run and images give
the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pybase64 import b64encode

from safelight.errors import Conflict, ModelUnavailable, RunFailed, SafelightError
from safelight.runs import Run, RunError, RunStatus

SUCCESS_MESSAGE = "Successfully generated images"
ACCEPTED_MESSAGE = "We will return the images to the endpoint provided when the task is complete."
CANCELLED_MESSAGE = "The run was cancelled"
MODEL_RETRY_SECONDS = 5.0


NO_PICTURES = b'"result": []'


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """As much of an ended run as its webhooks are told of, besides pictures."""

    id: str
    status: RunStatus
    run_time_ms: float | None
    error: RunError | None


def success_body(run: Run, images: Sequence[bytes]) -> bytes:
    """The envelope of a run that succeeded: `images` are the encoded files, in order."""
    body: dict[str, object] = {"run_id": run.id, "run_time_ms": run.run_time_ms, "message": SUCCESS_MESSAGE}
    body["result"] = []
    return with_pictures(_dumps(body), images)


def webhook_body(run: Run | Ended) -> bytes:
    """What a webhook is told about a run that has ended, before its pictures are put in."""
    body: dict[str, object] = {"run_id": run.id, "run_time_ms": run.run_time_ms or 0.0, "message": end_message(run)}
    body |= {"result": [], "status_code": status_code_of(run)}
    return _dumps(body if run.status is RunStatus.SUCCEEDED else body | {"code": end_code(run)})


def with_pictures(body: bytes, images: Sequence[bytes]) -> bytes:
    """A body with `images`, encoded files, in its empty result.

    The base64 is joined in by hand, all at once: a JSON encoder would look at every one of its megabytes again for
    nothing, and each + copies them.
    """
    head, _, tail = body.rpartition(NO_PICTURES)
    parts = [head, NO_PICTURES[:-1]]
    for image in images:
        parts += [b'"', b64encode(image), b'"', b","]
    return b"".join([*(parts[:-1] if images else parts), NO_PICTURES[-1:], tail])


def accepted_body(run: Run) -> bytes:
    """What a call is told at once when its results go to a webhook."""
    return _dumps({"run_id": run.id, "message": ACCEPTED_MESSAGE, "webhook_endpoint": run.webhook_endpoint})


def end_message(run: Run | Ended) -> str:
    """One sentence about how `run` ended."""
    if run.status is RunStatus.SUCCEEDED:
        return SUCCESS_MESSAGE
    if run.status is RunStatus.CANCELLED:
        return CANCELLED_MESSAGE
    return run.error.message if run.error else "The run failed"


def end_code(run: Run | Ended) -> str:
    """The stable code of how `run` ended; `succeeded`, or one of docs/errors.md."""
    if run.status is RunStatus.FAILED:
        return run.error.code if run.error else "run_failed"
    return "run_cancelled" if run.status is RunStatus.CANCELLED else run.status.value


def status_code_of(run: Run | Ended) -> int:
    """The HTTP status of how `run` ended: a webhook is told the one that a waiting caller gets."""
    if run.status is RunStatus.CANCELLED:
        return 409
    if run.status is RunStatus.SUCCEEDED:
        return 200
    return 503 if end_code(run) == ModelUnavailable.code else 500


def error_of(run: Run) -> SafelightError:
    """How a run ended that did not succeed, as the error a waiting caller gets."""
    code, message = end_code(run), end_message(run)
    if run.status is RunStatus.CANCELLED:
        return Conflict(message, code=code, run_id=run.id)
    if code == ModelUnavailable.code:
        return ModelUnavailable(message, retry_after_seconds=MODEL_RETRY_SECONDS, run_id=run.id)
    return RunFailed(message, code=code, run_id=run.id)


def _dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
