"""Forms as they arrive: received within a deadline and a size, then read field by field with a sentence
for each mistake."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any, TypeVar, get_type_hints
from urllib.parse import parse_qsl

from starlette.requests import Request

from safelight.api.params import shorten
from safelight.api.receiving import arriving
from safelight.deployments import Defaults, Limits
from safelight.errors import BodyTooLarge, FieldError, InvalidFields, UnsupportedMediaType
from safelight.keys import Allowance

MAX_FORM_BYTES = 256 * 1024
"""Two prompts at their limit, every character four bytes of UTF-8, percent-encoded."""

MAX_FIELDS = 100

OVERLAPS = {"0": 0.0, "1": 3600.0, "24": 86400.0, "168": 7 * 86400.0}
"""How long an old secret may go on beside its successor, in seconds, by the hours that are chosen."""

F = TypeVar("F", Defaults, Limits)


class Form:
    """The fields of a form. A name may come more than once; a missing one is empty."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def text(self, name: str) -> str:
        """The last value of a field, as it was typed."""
        return next((value for key, value in reversed(self._pairs) if key == name), "")

    def word(self, name: str) -> str:
        """The last value of a field without the space around it."""
        return self.text(name).strip()

    def all(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for key, value in self._pairs if key == name]

    def filled(self, names: frozenset[str]) -> dict[str, object]:
        """Those of `names` that have a value."""
        return {name: self.text(name) for name in names if self.word(name)}


async def read_form(request: Request, *, timeout_seconds: float) -> Form:
    """The form in the body. Raises UnsupportedMediaType, BodyTooLarge, ReceiveTimeout, InvalidFields."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("the dashboard takes forms only")
    async with arriving(request, timeout_seconds):
        body = await _collect(request)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidFields([FieldError("form", "it cannot be read; reload the page and send it again")]) from error
    # Browsers send the line ends of a text area as CR LF.
    return Form([(name, value.replace("\r\n", "\n")) for name, value in pairs])


async def _collect(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise BodyTooLarge(f"the form is over {MAX_FORM_BYTES} bytes, which is the most that is taken")
    return bytes(body)


def changed(current: F, form: Form) -> F:
    """`current` with the fields that the form has. Raises InvalidFields with every wrong one."""
    kinds = get_type_hints(type(current))
    values: dict[str, Any] = {}
    wrong: list[FieldError] = []
    for each in fields(current):
        if not form.all(each.name):
            continue
        try:
            values[each.name] = _value(kinds[each.name], form.text(each.name))
        except ValueError as error:
            wrong.append(FieldError(each.name, str(error)))
    if wrong:
        raise InvalidFields(wrong)
    return replace(current, **values)


def read_allowance(form: Form) -> Allowance:
    """What a key may use, as the form says; an empty field is no limit. Raises InvalidFields."""
    values: dict[str, Any] = {}
    wrong: list[FieldError] = []
    for each in fields(Allowance):
        word = form.word(each.name)
        if not word:
            continue
        try:
            values[each.name] = _value(float if each.name == "weight" else int, word)
        except ValueError as error:
            wrong.append(FieldError(each.name, str(error)))
    if wrong:
        raise InvalidFields(wrong)
    return Allowance(**values)


def _value(kind: type, text: str) -> object:
    if kind is str:
        return text
    word = text.strip()
    if issubclass(kind, StrEnum):
        if word not in set(kind):
            raise ValueError(f"{shorten(word)} is not one of {', '.join(kind)}")
        return kind(word)
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    is_fit = math.isfinite(value) and abs(value) < 2**31 and (kind is float or value.is_integer())
    if not is_fit or value < 0:
        raise ValueError(f"{shorten(word)} is not a {'number' if kind is float else 'whole number'} from 0 on")
    return value if kind is float else int(value)
