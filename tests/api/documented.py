"""Holds every answer of the suite against /openapi.json: its status, its media type, its members."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx2
from pydantic import TypeAdapter

from safelight.api import create_app, openapi, views, webhook_views
from safelight.config import ServerSettings


@cache
def the_document() -> dict[str, Any]:
    """The document, which is the same for every house."""
    nothing: Any = SimpleNamespace(keys=None, standings=None)
    return create_app(nothing, ServerSettings()).openapi()


def check_documented(answer: httpx2.Response) -> None:
    """Raises AssertionError where `answer` is not what the document says its route may answer."""
    operation = _find(the_document(), answer.request.method, answer.request.url.path)
    if answer.request.url.path == "/openapi.json":
        return
    if operation is None:
        assert answer.status_code in {404, 405, 421}
        if answer.request.method != "HEAD":
            _model("Problem").validate_json(answer.content)
        return
    responses = operation["responses"]
    where = f"{answer.request.method} {answer.request.url.path[:80]} -> {answer.status_code}"
    assert str(answer.status_code) in responses, f"{where} is not documented"
    response = responses[str(answer.status_code)]
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if not response.get("content"):
        assert answer.content == b"", where
        return
    assert media_type in response["content"], f"{where}: {media_type} is not documented"
    for name in response.get("headers", {}):
        is_optional = name in {"Warning", "X-Safelight-Seed", "RateLimit", "RateLimit-Policy"}
        assert is_optional or name.lower() in answer.headers, f"{where}: no {name}"
    if media_type.endswith("json"):
        _validate(response["content"][media_type]["schema"], answer.content)


def _find(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    for template, operations in document["paths"].items():
        pattern = re.sub(r"\{[a-z_]+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return operations[method.lower()]
    return None


def _validate(schema: dict[str, Any], body: bytes) -> None:
    refs = [choice["$ref"].rpartition("/")[2] for choice in schema.get("anyOf", [schema])]
    errors = []
    for name in refs:
        try:
            _model(name).validate_json(body)
            return
        except ValueError as error:
            errors.append(error)
    raise AssertionError(errors)


def _model(name: str) -> TypeAdapter[Any]:
    homes = (views, webhook_views, openapi)
    return TypeAdapter(next(getattr(home, name) for home in homes if hasattr(home, name)))
