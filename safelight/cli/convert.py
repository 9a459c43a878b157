"""`convert`: a pickled checkpoint as safetensors, read in a process that is thrown away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

import safelight
from safelight.cli.options import JsonOption
from safelight.cli.output import explain, printable, say, say_json
from safelight.errors import ModelError
from safelight.families import TITLES, family_of
from safelight.headers import read_header

_MAX_ANSWER_BYTES = 2**16
_MAX_REASON_CHARS = 300
_MAX_SECONDS = 3600.0
_PACKAGES = Path(safelight.__file__).parent.parent


def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint that is a pickle: .ckpt, .pt, .bin.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Unset: beside it, as .safetensors.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the weights of a pickled checkpoint as safetensors, without running what is in it."""
    _check_file(file)
    target = out or file.with_suffix(".safetensors")
    _check_target(target)
    answer = _convert(file, target)
    if not answer["has_left_network"]:
        explain("note: this system gives a process no network of its own; it could open no sockets all the same")
    if as_json:
        say_json({"path": str(target), "num_tensors": answer["num_tensors"]})
    else:
        say(str(target))
    _explain_next(target)


def _check_file(file: Path) -> None:
    """Raises ModelError for what is no pickle."""
    if not file.is_file():
        raise ModelError(f"{file} is missing; name a checkpoint file that is there")
    try:
        read_header(file)
    except ModelError:
        pass
    else:
        raise ModelError(f"{file} is a safetensors file already, whatever its name; serve it with `safelight deploy`")


def _check_target(target: Path) -> None:
    """Raises ModelError before anything is begun."""
    if target.exists():
        raise ModelError(f"{target} exists; name another file with --out")
    if not target.parent.is_dir():
        raise ModelError(f"{target.parent} is missing; make the folder, or name another file with --out")


def _convert(file: Path, target: Path) -> dict[str, object]:
    """What the process answers. The target is there when it is whole, or not at all. Raises ModelError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            answer = _ask_process(file, opened.fileno())
            if "error" in answer:
                raise ModelError(f"{file} was not converted: it {printable(answer['error'])[:_MAX_REASON_CHARS]}")
            os.fsync(opened.fileno())
        read_header(unfinished)
        # To be read by whoever may read the original.
        unfinished.chmod(file.stat().st_mode & 0o666)
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return answer


def _ask_process(file: Path, descriptor: int) -> dict[str, object]:
    """Convert in a process with nothing of this one's but `descriptor`, to write to."""
    command = [sys.executable, "-P", "-m", "safelight.engine.converting", str(file.resolve()), str(descriptor)]
    environment = {"PYTHONPATH": str(_PACKAGES), "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(  # noqa: S603 - this package's own module
            command,
            cwd=empty,
            env=environment,
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        # Its processor time is bounded, its sleep is not.
        alarm = threading.Timer(_MAX_SECONDS, process.kill)
        alarm.start()
        try:
            assert process.stdout is not None
            said = process.stdout.read(_MAX_ANSWER_BYTES)
        finally:
            alarm.cancel()
            process.kill()
    try:
        answer: dict[str, object] = json.loads(said)
        if "error" not in answer:
            answer["num_tensors"], answer["has_left_network"] = (
                int(str(answer["num_tensors"])),
                bool(answer["has_left_network"]),
            )
    except (ValueError, TypeError, KeyError) as error:
        ended = f"its process ended with {process.returncode} before it was done (out of memory or time?)"
        raise ModelError(f"{file} was not converted: {ended}") from error
    return answer


def _explain_next(target: Path) -> None:
    try:
        family = family_of(read_header(target))
    except ModelError:
        return
    explain(f"{TITLES[family]}; serve it with `safelight deploy {target}`")
