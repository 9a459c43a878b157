"""What is read of a safetensors file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safelight.errors import ModelError
from safelight.headers import read_header


def _file(folder: Path, header: str) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    return path


def test_a_file_may_say_that_it_has_nothing_to_say(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = read_header(_file(tmp_path, json.dumps({"__metadata__": None, "a": entry})))
    assert (header.shapes, header.metadata) == ({"a": (2,)}, {})


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e999]}}',
        '{"__metadata__": 7}',
        '{"__metadata__": "text"}',
    ],
)
def test_a_header_that_makes_no_sense_is_said_to_be_damaged(header: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is damaged"):
        read_header(_file(tmp_path, header))
