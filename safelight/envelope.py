"""The JSON bodies of the predict endpoint and of webhooks, as bytes. Pure: the same run and images give
the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pybase64 import b64encode

from safelight.errors import Conflict, ModelUnavailable, RunFailed, SafelightError
from safelight.runs import Run, RunStatus

SUCCESS_MESSAGE = "Successfully generated images"
ACCEPTED_MESSAGE = "We will return the images to the endpoint provided when the task is complete."
CANCELLED_MESSAGE = "The run was cancelled"
MODEL_RETRY_SECONDS = 5.0


def success_body(run: Run, images: Sequence[bytes], *, status_code: int | None = None) -> bytes:
    """The envelope of a run that succeeded: `images` are the encoded files, in order. `status_code` is
    for webhooks only.

    The base64 is joined in by hand, all at once: a JSON encoder would look at every one of its megabytes again for
    nothing, and each + copies them.
    """
    head = {"run_id": run.id, "run_time_ms": run.run_time_ms, "message": SUCCESS_MESSAGE}
    parts = [_dumps(head)[:-1], b', "result": [']
    for image in images:
        parts += [b'"', b64encode(image), b'"', b","]
    end = b"]}" if status_code is None else b'], "status_code": %d}' % status_code
    return b"".join([*(parts[:-1] if images else parts), end])


def failure_body(run: Run, *, status_code: int) -> bytes:
    """What a webhook is told about a run that failed or was cancelled."""
    body: dict[str, object] = {"run_id": run.id, "run_time_ms": run.run_time_ms or 0.0, "message": end_message(run)}
    body |= {"result": [], "status_code": status_code, "code": end_code(run)}
    return _dumps(body)


def accepted_body(run: Run) -> bytes:
    """What a call is told at once when its results go to a webhook."""
    return _dumps({"run_id": run.id, "message": ACCEPTED_MESSAGE, "webhook_endpoint": run.webhook_endpoint})


def end_message(run: Run) -> str:
    """One sentence about how `run` ended."""
    if run.status is RunStatus.SUCCEEDED:
        return SUCCESS_MESSAGE
    if run.status is RunStatus.CANCELLED:
        return CANCELLED_MESSAGE
    return run.error.message if run.error else "The run failed"


def end_code(run: Run) -> str:
    """The stable code of how `run` ended; `succeeded`, or one of docs/errors.md."""
    if run.status is RunStatus.FAILED:
        return run.error.code if run.error else "run_failed"
    return "run_cancelled" if run.status is RunStatus.CANCELLED else run.status.value


def status_code_of(run: Run) -> int:
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
