"""The tensors of a pickled checkpoint as safetensors, in a process that is thrown away.

`safelight convert` starts it (`python -m safelight.engine.converting FILE FD`) with an empty environment. What is
pickled is only read, by torch's reader that knows tensors and plain containers; should that ever be got round, the
process has no network, and can open no file, no socket and no process.
"""

# ruff: noqa: PLC0415 - nothing may be imported, and no thread begun, before the process has left the network.

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

MAX_SECONDS = 1800
SPARE_BYTES = 2**30
"""Of memory, above what the process holds when it begins to read and twice the file."""

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_STATM = Path("/proc/self/statm")

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

_BYSTANDERS = ("pytorch_lightning.", "lightning.", "numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.dtype")
"""What trainers leave beside the weights. It is read as nothing: the stand-in has no code of its own."""

_REFUSED = re.compile(r"(?:GLOBAL |Trying to load unsupported GLOBAL )(\S+)")


class _Bystander:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class Unfit(Exception):
    """The file cannot be converted; the message is the rest of a sentence about it."""


def leave_network() -> bool:
    """Go where there is no network and no other process' memory to share; whether the system allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return hasattr(libc, "unshare") and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0


def lock_in(num_bytes: int) -> None:
    """From here on nothing can be opened any more: no file, no socket, no pipe, no library, and no process begun where
    the user is not root. Memory, time and what can be written are bounded by the size of the file."""
    limits = {
        resource.RLIMIT_AS: _held_bytes() + 2 * num_bytes + SPARE_BYTES,
        resource.RLIMIT_FSIZE: 2 * num_bytes + 2**20,
        resource.RLIMIT_CPU: MAX_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def read_weights(opened: BinaryIO) -> dict[str, torch.Tensor]:
    """The named tensors of a pickle; runs nothing that is in it. Raises Unfit."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(opened)
    except ValueError:
        # A file of before 2020 does not tell beforehand; what it may hold is the same.
        names = []
    opened.seek(0)
    stand_ins: list[Any] = [(_Bystander, name) for name in names if name.startswith(_BYSTANDERS)]
    with torch.serialization.safe_globals(stand_ins):
        found = torch.load(opened, map_location="cpu", weights_only=True)
    while isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise Unfit("holds no tensors by name")
    weights = {name: each for name, each in found.items() if isinstance(name, str) and isinstance(each, torch.Tensor)}
    if not weights:
        raise Unfit("holds no tensors by name")
    return weights


def write_safetensors(weights: Mapping[str, torch.Tensor], out: BinaryIO) -> None:
    """One tensor in memory at a time. Raises Unfit for tensors that the format has no word for."""
    import torch

    header: dict[str, object] = {}
    end = 0
    for name, tensor in weights.items():
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout is not torch.strided:
            raise Unfit(f"holds {name[:100]} as {tensor.dtype}, {tensor.layout}, which safetensors has no word for")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for tensor in weights.values():
        out.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def main(path: str, number: str) -> None:
    """Writes {"num_tensors", "has_left_network"} or {"error"}. Exits with 0 either way: another status is a crash."""
    has_left_network = leave_network()
    with Path(path).open("rb") as opened, os.fdopen(int(number), "wb") as out:
        try:
            _warm_up()
            lock_in(os.fstat(opened.fileno()).st_size)
            weights = read_weights(opened)
            write_safetensors(weights, out)
            out.flush()
            answer: dict[str, object] = {"num_tensors": len(weights), "has_left_network": has_left_network}
        except Exception as error:
            answer = {"error": _reason(error)}
            with contextlib.suppress(OSError):
                out.close()
    sys.stdout.write(json.dumps(answer))


def _warm_up() -> None:
    """Have everything imported that reading needs: afterwards nothing can be."""
    import torch

    torch.set_num_threads(1)
    codecs.lookup("latin1")
    for is_zip in (True, False):
        saved = io.BytesIO()
        torch.save({"x": torch.zeros(1, dtype=torch.float16)}, saved, _use_new_zipfile_serialization=is_zip)
        saved.seek(0)
        write_safetensors(read_weights(saved), io.BytesIO())
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(b"\x80\x02cposix\nsystem\nq\x00."), weights_only=True)


def _reason(error: Exception) -> str:
    if isinstance(error, Unfit):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "needs more memory than twice its size, or than there is"
    if isinstance(error, OSError):
        return f"cannot be written as safetensors ({error.strerror})"
    refused = _REFUSED.search(str(error))
    if refused is not None:
        return f"asks for {refused[1][:100]}, which is no part of weights, and was not run; do not trust this file"
    first = " ".join(str(error).split()).split(". ")[0]
    return f"cannot be read as weights ({first[:150]}); download it again"


def _held_bytes() -> int:
    """Address space that the process has already."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 2**36


if __name__ == "__main__":
    main(*sys.argv[1:])
