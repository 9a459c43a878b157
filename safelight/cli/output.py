"""What commands print: answers on stdout, explanations and errors on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 200
_COMMANDS = frozenset({"Cc", "Cs"})
"""Control characters, and half pairs, which cannot be written at all."""

_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Change the direction in which what follows is shown."""


def say(text: str) -> None:
    """A line of the answer."""
    typer.echo(text)


def explain(text: str) -> None:
    """A line for the person at the terminal; never part of what a script reads."""
    typer.echo(text, err=True)


def printable(value: object) -> str:
    """What somebody else said, on one line, without what could command a terminal or turn the text around."""
    return "".join(
        "?" if unicodedata.category(letter) in _COMMANDS or letter in _TURNS else letter for letter in str(value)
    )


def fail(message: str) -> typer.Exit:
    """Say what went wrong and what to do next; raise what this returns."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)


def say_json(value: object) -> None:
    """Dataclasses become objects, sets sorted lists."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or the sentence `empty`. Cells never hold markup, nor what could command a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, str(cell).split("\n")))) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        explain(empty)


def console(*, is_for_answers: bool = True) -> Console:
    """A rich console; without a terminal wide enough for whole lines."""
    stream = sys.stdout if is_for_answers else sys.stderr
    return Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL)


def when(seconds: float | None) -> str:
    """A time of the database's clock as local time."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(num_bytes: float) -> str:
    """A number of bytes as people say it."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit in ("B", "kB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
