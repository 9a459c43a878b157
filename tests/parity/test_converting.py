"""A pickled checkpoint becomes a safetensors file that can be served; what a pickle wants to run is never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from safelight.cli.output import printable
from safelight.cli.root import build_app
from safelight.engine import converting
from safelight.engine.converting import Unfit, read_weights, write_safetensors

from .test_single_file import make_twins


class Malicious:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def saved(value: object, *, is_zip: bool = True) -> io.BytesIO:
    found = io.BytesIO()
    torch.save(value, found, _use_new_zipfile_serialization=is_zip)
    found.seek(0)
    return found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(each) for each in arguments])


def test_a_converted_checkpoint_deploys_and_holds_the_same(tmp_path: Path) -> None:
    twins = make_twins("sd1", tmp_path)
    pickled, out = tmp_path / "community.ckpt", tmp_path / "community.safetensors"
    torch.save({"state_dict": load_file(twins.file), "epoch": 3}, pickled)
    refused = run("deploy", pickled, "--data", tmp_path / "data")
    assert f"`safelight convert {pickled}`" in refused.stderr and refused.exit_code == 1
    done = run("convert", pickled)
    assert (done.exit_code, done.stdout) == (0, f"{out}\n"), done.stderr
    assert f"Stable Diffusion 1.x; serve it with `safelight deploy {out}`" in done.stderr
    ours, theirs = load_file(out), load_file(twins.file)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run("deploy", out, "--data", tmp_path / "data").exit_code == 0
    assert f"{out} exists; name another file with --out" in run("convert", pickled).stderr


def test_a_malicious_checkpoint_runs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    file, canary = tmp_path / "bad.ckpt", tmp_path / "canary"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "more": Malicious(canary)}, file)
    done = run("convert", file)
    assert done.exit_code == 1
    assert "bad.ckpt was not converted: it asks for posix.system, which is no part of weights" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_of_any_format_runs_nothing(tmp_path: Path, is_zip: bool) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        read_weights(saved({"x": Malicious(canary)}, is_zip=is_zip))
    with pytest.raises(pickle.UnpicklingError):
        read_weights(io.BytesIO(pickle.dumps(Malicious(canary), protocol=0)))
    assert not canary.exists()


def test_what_a_trainer_leaves_beside_the_weights_is_read_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class ModelCheckpoint:
        def __setstate__(self, state: object) -> None:
            raise AssertionError("its own code ran")

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = "pytorch_lightning.callbacks", "ModelCheckpoint"
    module = type(sys)("pytorch_lightning.callbacks")
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", type(sys)("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    left = ModelCheckpoint()
    left.__dict__["best"] = 1
    found = read_weights(saved({"state_dict": {"x": torch.ones(2)}, "callbacks": {ModelCheckpoint: left}}))
    assert found.keys() == {"x"}


def test_every_kind_of_tensor_comes_through_and_views_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(6).reshape(2, 3)
    kinds = {str(dtype): base.to(getattr(torch, dtype)) for dtype in converting._DTYPES}
    weights = kinds | {"turned": base.T, "again": base, "empty": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    with (tmp_path / "all.safetensors").open("wb") as out:
        write_safetensors(read_weights(saved(weights)), out)
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == weights.keys()
    assert all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in weights.items())


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"state_dict": {}}, {"epoch": 3}, torch.zeros(1)])
def test_what_holds_no_named_tensors_is_unfit(value: object) -> None:
    with pytest.raises(Unfit, match="holds no tensors by name"):
        read_weights(saved(value))
    with pytest.raises(Unfit, match="which safetensors has no word for"):
        write_safetensors({"x": torch.zeros(1, dtype=torch.complex64)}, io.BytesIO())


LOCKED_IN = """
import os, socket
from safelight.cli.output import printable
from safelight.engine.converting import lock_in
written = open("written", "wb", buffering=0)
lock_in(0)
for attempt in (
    socket.socket,
    os.pipe,
    lambda: open("/etc/hostname"),
    lambda: open("canary", "w"),
    lambda: written.write(bytes(2**20)) + written.write(b"more"),
    lambda: bytearray(2**33),
):
    try:
        attempt()
    except (OSError, MemoryError):
        print("held", flush=True)
"""


def test_a_locked_in_process_opens_nothing_and_has_bounds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKED_IN]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ, cwd=tmp_path).stdout
    assert told == b"held\n" * 6
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["missing.ckpt", "mine.safetensors"])
def test_what_needs_no_converting_is_said_before_anything_is_begun(tmp_path: Path, name: str) -> None:
    with (tmp_path / "mine.safetensors").open("wb") as out:
        write_safetensors({"x": torch.zeros(1)}, out)
    done = run("convert", tmp_path / name)
    assert done.exit_code == 1
    assert ("is missing" if name.startswith("missing") else "is a safetensors file already") in done.stderr


LOCKED_IN_READING = """
import sys
from safelight.engine import converting
converting.read_weights = lambda opened: open("/etc/hostname") and {}
converting._warm_up = lambda: None
converting.main(sys.argv[1], sys.argv[2])
"""


def test_what_reads_a_file_is_locked_in_before_it_looks_at_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.ckpt"
    file.write_bytes(b"weights")
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-c", LOCKED_IN_READING, str(file), str(out.fileno())]
        said = subprocess.run(command, pass_fds=[out.fileno()], capture_output=True, text=True, check=True).stdout
    assert "Too many open files" in json.loads(said)["error"]


def test_what_the_process_says_commands_no_terminal() -> None:
    assert printable("asks for \x1b[2Jposix.system\n") == "asks for ?[2Jposix.system?"


def test_weights_are_read_by_those_who_may_read_the_original(tmp_path: Path) -> None:
    private = tmp_path / "private.ckpt"
    torch.save({"a": torch.zeros(2)}, private)
    private.chmod(0o600)
    assert run("convert", private).exit_code == 0
    assert private.with_suffix(".safetensors").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_no_checkpoint() -> None:
    answer = run("convert", Path())
    assert answer.exit_code == 1 and ". is missing" in answer.output
