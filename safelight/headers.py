"""What a safetensors file says of itself, read without loading it. Whatever can run code when it is read is refused
here, by its content."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import ModelError

MAX_HEADER_BYTES = 16 * 2**20
"""Headers of the largest models have a few hundred thousand; more is an attack on memory."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file by name, and the texts its maker left in it."""

    file: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Raises ModelError, with the remedy, for a pickle, for what is no safetensors file, and for one
    that was cut short."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
            _check_kind(file, head)
            length = int.from_bytes(head[:8], "little")
            text = (head[8:] + opened.read(max(0, length - 8)))[:length]
        num_bytes = file.stat().st_size
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    try:
        entries = json.loads(text)
        metadata = {str(name): str(text) for name, text in dict(entries.pop("__metadata__", None) or {}).items()}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise ModelError(f"{file} is damaged (its header cannot be read); download it again") from error
    if num_bytes < 8 + length + end:
        raise ModelError(f"{file} is damaged ({num_bytes} bytes of {8 + length + end}); download it again")
    return Header(file, shapes, metadata)


def pickle_message(file: Path, out: Path | None = None) -> str:
    """Why a pickle is not loaded, and the command that converts it, into `out` where its name matters."""
    command = shlex.join(["safelight", "convert", str(file), *(["--out", str(out)] if out else [])])
    return f"{file} is a pickle, which can run code when it is read, and is not loaded; convert it first: `{command}`"


def _check_kind(file: Path, head: bytes) -> None:
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise ModelError(pickle_message(file))
    if head.startswith(b"version https://"):
        raise ModelError(f"{file} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    is_safetensors = head[8:9] == b"{"
    if file.suffix in PICKLE_SUFFIXES and not is_safetensors:
        raise ModelError(pickle_message(file))
    if len(head) < 9 or not is_safetensors or int.from_bytes(head[:8], "little") > MAX_HEADER_BYTES:
        raise ModelError(f"{file} is no safetensors file; download it again")
