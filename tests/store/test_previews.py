"""The folder of previews."""

from __future__ import annotations

import os
from pathlib import Path

from safelight.store.previews import PreviewFolder


async def test_the_newest_preview_takes_the_place_of_the_last(tmp_path: Path) -> None:
    folder = PreviewFolder(tmp_path / "previews")
    assert (await folder.read("run"), await folder.version("run")) == (None, None)
    await folder.write("run", b"first")
    first = await folder.version("run")
    await folder.write("run", b"second")
    assert await folder.read("run") == b"second"
    assert await folder.version("run") != first
    assert [file.name for file in (tmp_path / "previews").iterdir()] == ["run.png"]
    await folder.remove("run")
    await folder.remove("run")
    assert await folder.read("run") is None


async def test_what_nobody_writes_anew_is_swept(tmp_path: Path) -> None:
    folder = PreviewFolder(tmp_path / "previews")
    for run_id in ("old", "new"):
        await folder.write(run_id, b"picture")
    os.utime(tmp_path / "previews" / "old.png", (1.0, 1.0))
    assert await folder.sweep() == 1
    assert (await folder.read("old"), await folder.read("new")) == (None, b"picture")


async def test_one_that_cannot_be_removed_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "run.png").mkdir()
    await PreviewFolder(tmp_path).remove("run")
