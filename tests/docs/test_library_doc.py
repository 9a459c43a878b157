"""The example of docs/library.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safelight.catalog import find_weights
from safelight.errors import ModelError

TEXT = (Path(__file__).parent.parent.parent / "docs" / "library.md").read_text(encoding="utf-8")


def test_the_example_draws_two_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_weights("pinhole", folders={})
    except ModelError as error:
        pytest.skip(error.message)
    [example] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    files = names["files"]
    assert isinstance(files, dict) and set(files) == {"house", "boat"}
    assert all(data.startswith(b"\x89PNG") for data in files.values())
    told = capsys.readouterr().out
    assert "house 4 of 4" in told and "boat 3 of 3" in told
