"""Weights go into the package whole or not at all."""

import shutil
from pathlib import Path

import pytest

from tests.faults.away import NO_MOUNT, small_disk
from training.pinhole.export import SHIPPED, adopt, export
from training.pinhole.files import DiskFullError


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_shipped_weights_come_out_as_they_went_in(tmp_path: Path) -> None:
    adopt(SHIPPED, tmp_path / "work")
    export(tmp_path / "work", tmp_path / "weights")
    shipped = _contents(SHIPPED)
    assert shipped | _contents(tmp_path / "weights") == shipped


def test_an_export_without_room_leaves_the_weights_that_were_there(tmp_path: Path) -> None:
    adopt(SHIPPED, tmp_path / "work")
    with small_disk(tmp_path / "disk", megabytes=50) as is_mounted:
        if not is_mounted:
            pytest.skip(NO_MOUNT)
        weights = tmp_path / "disk" / "weights"
        shutil.copytree(SHIPPED, weights)
        before = _contents(weights)
        with pytest.raises(DiskFullError, match=r"free some space"):
            export(tmp_path / "work", weights)
        assert _contents(weights) == before
        assert list(weights.parent.iterdir()) == [weights]
