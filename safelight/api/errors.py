"""Codes to HTTP: the one place that knows which status an error is, and how its problem document (RFC 9457) looks."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from safelight.api.answers import PROBLEM, Answer, respond
from safelight.errors import FieldError, InvalidFields, InvalidRequest, NotFound, RunFailed, SafelightError, TryLater

log = logging.getLogger("safelight.api")

STATUSES: Mapping[str, tuple[int, str]] = {
    "malformed_body": (400, "The body is not a JSON object"),
    "invalid_request": (400, "The request cannot be read"),
    "unauthorized": (401, "The key is missing or not valid"),
    "forbidden": (403, "The key lacks the scope"),
    "not_found": (404, "There is nothing here"),
    "run_not_found": (404, "There is no such run"),
    "deployment_not_found": (404, "There is no such deployment"),
    "endpoint_not_found": (404, "There is no such webhook endpoint"),
    "delivery_not_found": (404, "There is no such delivery"),
    "image_not_found": (404, "There is no such image"),
    "preview_not_found": (404, "There is no preview"),
    "method_not_allowed": (405, "The method is not for this path"),
    "receive_timeout": (408, "The request took too long to arrive"),
    "conflict": (409, "The state does not allow this"),
    "run_cancelled": (409, "The run was cancelled"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body is not declared as JSON"),
    "wrong_host": (421, "The Host is not one of this server's names"),
    "invalid_fields": (422, "One or more fields are wrong"),
    "idempotency_mismatch": (422, "The idempotency key was used with another request"),
    "overloaded": (429, "Too many runs are waiting"),
    "too_many_runs": (429, "The key has too many runs"),
    "rate_limited": (429, "The key asks too often"),
    "quota_exhausted": (429, "The key has used up its day"),
    "deadline_unreachable": (429, "It cannot be done by the deadline"),
    "run_failed": (500, "The run failed"),
    "internal_error": (500, "Something went wrong inside"),
    "model_unavailable": (503, "The model cannot be loaded now"),
    "stopping": (503, "The server is stopping"),
    "not_ready": (503, "The server is not ready"),
    "try_later": (503, "The server cannot do this now"),
    "wait_timeout": (504, "The run takes longer than a call may wait"),
    "storage_full": (507, "The disk is full"),
}
"""Code -> status and title. A code that is not here has the status of its error's class."""

_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
_FRAMEWORK_CODES |= {408: "receive_timeout", 421: "wrong_host", 422: "invalid_fields"}


def status_of(error: SafelightError) -> int:
    """The HTTP status of `error`."""
    return _find(error)[0]


def problem(error: SafelightError) -> dict[str, object]:
    """The members of the problem document of `error`."""
    status, title = _find(error)
    members: dict[str, object] = {
        "type": f"urn:safelight:error:{error.code}",
        "title": title,
        "status": status,
        "detail": error.message,
        "message": error.message,
        "code": error.code,
    }
    if isinstance(error, InvalidFields):
        members["errors"] = [{"field": wrong.field, "message": wrong.message} for wrong in error.fields]
    if error.run_id is not None:
        members["run_id"] = error.run_id
    return members


def problem_answer(error: SafelightError) -> Answer:
    """The whole answer to `error`: document, status, and the headers its status asks for."""
    status = status_of(error)
    headers: list[tuple[str, str]] = []
    if status == 401:
        headers.append(("WWW-Authenticate", 'Bearer realm="safelight"'))
    if isinstance(error, TryLater):
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after_seconds)))))
    if status == 408:
        # The rest of the body may still come, and nobody is going to read it.
        headers.append(("Connection", "close"))
    if error.run_id is not None:
        headers.append(("X-Safelight-Run-Id", error.run_id))
    body = json.dumps(problem(error)).encode()
    return Answer(status=status, body=body, media_type=PROBLEM, headers=tuple(headers))


def unexpected(error: Exception, *, where: str) -> Answer:
    """The answer to an exception nobody meant to raise. It goes to the log; the caller learns nothing of it."""
    log.error("unexpected error", exc_info=error, extra={"where": where})
    return problem_answer(
        SafelightError("something unexpected happened; the server's log says what, and trying again may help")
    )


async def answer_error(request: Request, error: Exception) -> Response:
    """Exception handler for the tree of safelight.errors."""
    assert isinstance(error, SafelightError)
    if status_of(error) >= 500 and not isinstance(error, RunFailed | TryLater):
        log.error("%s: %s", error.code, error.message, extra={"run_id": error.run_id})
    return respond(problem_answer(error))


async def answer_framework_error(request: Request, error: Exception) -> Response:
    """Exception handler for what the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    response = respond(problem_answer(_from_framework(error, request.method)))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Exception handler for parameters of paths and queries that do not fit their type."""
    assert isinstance(error, RequestValidationError)
    fields = [FieldError(str(wrong["loc"][-1]), str(wrong["msg"])) for wrong in error.errors()]
    return respond(problem_answer(InvalidFields(fields)))


def _find(error: SafelightError) -> tuple[int, str]:
    if isinstance(error, RunFailed):
        return STATUSES["run_failed"]
    codes = [error.code, *(cls.code for cls in type(error).__mro__ if issubclass(cls, SafelightError))]
    return next(STATUSES[code] for code in codes if code in STATUSES)


def _from_framework(error: HTTPException, method: str) -> SafelightError:
    if error.status_code == 404:
        return NotFound("there is nothing at this path; GET /openapi.json lists what there is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return InvalidRequest(f"this path does not answer {method[:20]}; use {allowed}", code="method_not_allowed")
    if error.status_code >= 500:
        return SafelightError("something unexpected happened; trying again may help")
    phrase = HTTPStatus(error.status_code).phrase
    return InvalidRequest(phrase.lower(), code=_FRAMEWORK_CODES.get(error.status_code, "invalid_request"))
