"""docs/why.md says of every package in pyproject.toml what it is for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.split(r"[^a-z0-9-]", each.lower())[0] for each in wanted}
    table = (ROOT / "docs" / "why.md").read_text(encoding="utf-8").partition("## Dependencies")[2].lower()
    first_cells = " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))
    given = set(re.findall(r"[a-z0-9-]+", first_cells))
    assert names and names <= given, names - given
