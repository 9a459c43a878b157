"""Times, sizes and numbers as people read them. Pure; the filters of the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

NOTHING = "\N{EN DASH}"
"""Stands where there is no figure."""

_LAST_SECONDS = datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()

_AGES = ((60.0, "s", 1.0), (3600.0, "min", 60.0), (86400.0, "h", 3600.0), (float("inf"), "d", 86400.0))


def age(seconds: float) -> str:
    """How long ago, in one unit: `4 min ago`."""
    if seconds < 1.5:
        return "just now"
    for limit, unit, length in _AGES:
        if seconds < limit:
            return f"{int(seconds / length)} {unit} ago"
    raise AssertionError("the last limit is endless")


def duration(seconds: float | None) -> str:
    """A span: `340 ms`, `4.2 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(num_bytes: float) -> str:
    """`812 bytes`, `4.2 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}" if num_bytes < 100 else f"{num_bytes:.0f} {unit}"
    return f"{num_bytes / 1000:.1f} TB"


def number(value: float) -> str:
    """With thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u2009")


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share * 100:.0f} %"


def iso(seconds: float) -> str:
    """For the `datetime` of a time element."""
    return _in_utc(seconds).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment(seconds: float) -> str:
    """A point in time, in UTC."""
    return _in_utc(seconds).strftime("%-d %b %Y, %H:%M:%S UTC")


def clock(seconds: float) -> str:
    """The time of day alone, in UTC."""
    return _in_utc(seconds).strftime("%H:%M:%S")


def plain(value: float) -> str:
    """A number as a form shows it: 7.5, 8, not 8.0."""
    return str(int(value)) if value == int(value) else repr(value)


def short_id(run_id: str) -> str:
    """Enough of a run's id to tell it from its neighbours."""
    return run_id[:8]


def _in_utc(seconds: float) -> datetime:
    # Rows of older releases may hold a time that no calendar has; the page is shown all the same.
    return datetime.fromtimestamp(min(_LAST_SECONDS, max(0.0, seconds)), UTC)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "duration": duration,
    "size": size,
    "number": number,
    "percent": percent,
    "iso": iso,
    "moment": moment,
    "clock": clock,
    "plain": plain,
    "short_id": short_id,
}
