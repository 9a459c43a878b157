"""What is in the wheel, and that it runs where nothing else of ours is."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import safelight
from safelight.catalog import PINHOLE_FOLDER
from tests.lean import LEAN

ROOT = Path(__file__).parent.parent.parent

needs_weights = pytest.mark.skipif(
    not (PINHOLE_FOLDER / "model_index.json").is_file(), reason="the package has no weights of pinhole"
)


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


@needs_weights
def test_the_wheel_has_the_weights_of_the_model_in_the_box(names: set[str]) -> None:
    assert "safelight/pinhole/model_index.json" in names
    assert any(name.startswith("safelight/pinhole/unet/") and name.endswith(".safetensors") for name in names)


def test_the_wheel_has_nothing_but_the_package(names: set[str]) -> None:
    roots = {name.split("/")[0] for name in names}
    assert roots == {"safelight", f"safelight-{safelight.__version__}.dist-info"}


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which Safelight is the wheel's, and what it stands on is borrowed from here."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (site / "borrowed.pth").write_text(f"{LEAN}\n{sysconfig.get_path('purelib')}\n")
    return python


def run(python: Path, folder: Path, *arguments: str) -> str:
    """What a command says, with nothing in its environment."""
    command = [str(python), *arguments]
    ran = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_runs_in_an_environment_of_its_own(python: Path, tmp_path: Path) -> None:
    assert str(python.parent.parent) in run(python, tmp_path, "-c", "import safelight; print(safelight.__file__)")
    assert run(python, tmp_path, "-m", "safelight", "--version") == f"safelight {safelight.__version__}\n"
    assert run(python, tmp_path, "-m", "safelight", "keys", "create", "first").startswith("sl_live_")


@needs_weights
def test_the_demo_runs_from_the_wheel_where_one_ran_before(python: Path, tmp_path: Path) -> None:
    def safelight_says(*words: str) -> str:
        return run(python, tmp_path, "-m", "safelight", *words)

    earlier = ("--data", "demo/data")
    safelight_says("deploy", "pinhole", "--name", "dreambooth-webhook", *earlier)
    safelight_says("keys", "create", "demo", *earlier)
    small = ("--height", "64", "--width", "64", "--steps", "2")
    assert "webhook, verified" in safelight_says("demo", *small)
    assert len(list((tmp_path / "demo").glob("*.png"))) == 4
    keys = json.loads(safelight_says("keys", "list", "--json", *earlier))
    assert all(key["revoked_at"] for key in keys if key["name"] == "demo")
