"""An HTTP answer before it is one: what dialects return. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

JSON = "application/json"
PROBLEM = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, headers in order (a name may come twice) and the bytes of a body."""

    status: int
    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()


def respond(answer: Answer) -> Response:
    """`answer` as a response of the framework."""
    response = Response(answer.body, status_code=answer.status, media_type=answer.media_type)
    for name, value in answer.headers:
        response.headers.append(name, value)
    return response
