"""Counts the lines of functions and files. Fails on a function over 60 lines or a file over 400; prints
the percentiles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
FOLDERS = ("safelight", "scripts", "benchmarks", "training")


@dataclass(frozen=True, slots=True, order=True)
class Length:
    """How many lines something has."""

    num_lines: int
    what: str


def files(root: Path) -> Iterator[Length]:
    for path in _sources(root):
        yield Length(path.read_text(encoding="utf-8").count("\n"), str(path.relative_to(root)))


def functions(root: Path) -> Iterator[Length]:
    for path in _sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                where = f"{path.relative_to(root)}:{node.lineno} {node.name}"
                yield Length(node.end_lineno - node.lineno + 1, where)


def percentile(lengths: list[Length], share: float) -> int:
    return sorted(lengths)[int(share * (len(lengths) - 1))].num_lines


def main() -> int:
    root = Path(__file__).parent.parent
    too_long = False
    for name, found, limit in (
        ("functions", list(functions(root)), MAX_FUNCTION_LINES),
        ("files", list(files(root)), MAX_FILE_LINES),
    ):
        figures = ", ".join(f"p{share} {percentile(found, share / 100)}" for share in (50, 90, 100))
        print(f"{len(found)} {name}, lines: {figures} (limit {limit})")
        for each in sorted(found, reverse=True):
            if each.num_lines > limit:
                print(f"  too long: {each.what}: {each.num_lines} lines")
                too_long = True
    return 1 if too_long else 0


def _sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main())
