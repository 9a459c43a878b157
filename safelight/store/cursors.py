"""Where a page of runs ends, as the text that asks for the next one."""

from __future__ import annotations

import base64
import math
from typing import Any

import sqlalchemy as sa

from safelight.errors import FieldError, InvalidFields

MAX_NUMBER = 2**63


def cursor_at(row: sa.Row[Any]) -> str:
    """The cursor of the page that begins after the run of `row`."""
    return base64.urlsafe_b64encode(f"{row.created_at!r} {row.number}".encode()).decode()


def read_cursor(cursor: str) -> tuple[float, int]:
    """Time and number in a cursor. Raises InvalidFields."""
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
        created_at, number = text.split(" ")
        place = float(created_at), int(number)
    except ValueError:
        place = math.nan, 0
    if not (math.isfinite(place[0]) and 0 < place[1] < MAX_NUMBER):
        message = "this is not a cursor from an earlier page; ask for the first page without one"
        raise InvalidFields([FieldError("cursor", message)])
    return place
