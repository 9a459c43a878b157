"""What is in the wheel, and that it runs where nothing else of ours is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import safelight
from safelight.catalog import PINHOLE_FOLDER

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_file_of_the_package(names: set[str]) -> None:
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "safelight").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - names == set()
    assert "safelight/py.typed" in names
    assert any(name.startswith("safelight/store/migrations/") and name.endswith(".py") for name in names)


@pytest.mark.skipif(not (PINHOLE_FOLDER / "model_index.json").is_file(), reason="pinhole has no weights yet")
def test_the_wheel_has_the_weights_of_the_model_in_the_box(names: set[str]) -> None:
    assert "safelight/pinhole/model_index.json" in names
    assert any(name.startswith("safelight/pinhole/unet/") and name.endswith(".safetensors") for name in names)


def test_the_wheel_has_nothing_but_the_package(names: set[str]) -> None:
    roots = {name.split("/")[0] for name in names}
    assert roots == {"safelight", f"safelight-{safelight.__version__}.dist-info"}


def test_the_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    # The packages Safelight stands on are those of the running environment; Safelight itself is the wheel's.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for arguments in (
        ("--version",),
        ("models", "--json"),
        ("keys", "create", "first", "--data", str(tmp_path / "data")),
    ):
        ran = subprocess.run(
            [str(python), "-m", "safelight", *arguments],
            cwd=tmp_path,
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    where = [str(python), "-c", "import safelight; print(safelight.__file__)"]
    assert str(site) in subprocess.run(where, cwd=tmp_path, env={}, capture_output=True, text=True, check=True).stdout
