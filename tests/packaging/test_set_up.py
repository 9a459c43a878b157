"""The set-up says what the machine lacks, with the remedy, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "set_up.sh"
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")


def executable(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def refused(folder: Path, *, python: Path | None = None, path: str = os.environ["PATH"]) -> str:
    """What the set-up says when it stops."""
    environment = {"PATH": path} | ({} if python is None else {"PYTHON": str(python)})
    command = [str(BASH), str(SCRIPT), "", ".venv/installed"]
    stopped = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert not (folder / ".venv").exists()
    return stopped.stderr


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = executable(tmp_path / "bin" / "python2", "exit 1")
    assert "is not a Python 3.11 to 3.14; name another one: make PYTHON=" in refused(tmp_path, python=old)


def test_no_python_at_all_names_the_package_to_install(tmp_path: Path) -> None:
    for name in ("awk", "df"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    assert "apt install python3" in refused(tmp_path, path=str(tmp_path / "bin"))


def test_a_python_without_venv_names_the_package_to_install(tmp_path: Path) -> None:
    bare = executable(
        tmp_path / "bin" / "python3", 'case "$2" in *ensurepip*) exit 1;; esac', f'exec {sys.executable} "$@"'
    )
    assert "apt install python3-venv" in refused(tmp_path, python=bare)


def test_too_little_disk_is_said_before_anything_is_made(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "df", "echo header; echo 'disk 9 9 150000 9% /'")
    assert "only 150 MB are free" in refused(tmp_path, path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
