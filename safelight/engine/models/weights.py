"""Weights from safetensors files, and from nothing else: whatever can run code when it is read is refused by its content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from safelight.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def find_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one component: whole, a variant such as fp16, or shards. Raises ModelError."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    indexes = sorted(folder.glob(f"{stem}.safetensors.index*.json"))
    if indexes:
        return _shards(indexes[0])
    variants = sorted(path for path in folder.glob(f"{stem}.*.safetensors") if path.is_file())
    if variants:
        return variants[:1]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(_pickle_message(folder / pickles[0]))
    raise ModelError(f"{folder} holds no weights: {stem}.safetensors is missing; download the model again")


def load_weights(
    module: torch.nn.Module,
    files: list[Path],
    *,
    dtype: torch.dtype,
    device: torch.device,
    rename: Callable[[str], str] = lambda name: name,
    is_ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill a module that was made on the meta device, one tensor at a time. Raises ModelError where names or shapes do
    not match the module."""
    wanted = module.state_dict()
    found: dict[str, torch.Tensor] = {}
    for file in files:
        for stored_name, tensor in _tensors(file):
            name = rename(stored_name)
            if is_ignored(name):
                continue
            if name not in wanted:
                raise ModelError(f"{file} holds {stored_name}, which its config.json has no place for; {_AGAIN}")
            if tensor.shape != wanted[name].shape and tensor.squeeze().shape != wanted[name].squeeze().shape:
                shapes = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
                raise ModelError(
                    f"{file}: {stored_name} has the shape {shapes} that its config.json asks for; {_AGAIN}"
                )
            found[name] = _placed(tensor.reshape(wanted[name].shape), dtype, device)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ModelError(f"{files[0]} lacks {len(missing)} tensors, the first {missing[0]}; {_AGAIN}")
    module.load_state_dict(found, strict=True, assign=True)
    module.requires_grad_(False).eval()


_AGAIN = "config and weights belong to different models, or a download was cut short: download the folder again"


def _placed(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A copy in memory of our own: a mapped file could be changed under a running model."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=dtype, memory_format=layout, copy=True)


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    check_safetensors(file)
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); download it again") from error


def check_safetensors(file: Path) -> None:
    """Look at the first bytes, not at the name. Raises ModelError for a pickle and for anything that is not safetensors."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        raise ModelError(_pickle_message(file))
    if head.startswith(b"version https://"):
        raise ModelError(f"{file} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if len(head) < 9 or head[8:9] != b"{" or int.from_bytes(head[:8], "little") > MAX_HEADER_BYTES:
        raise ModelError(f"{file} is no safetensors file; download it again")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged; download it again") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside its folder; do not use this model")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index.parent / missing[0]} is missing; download the model again")
    return [index.parent / name for name in sorted(names)]


def _pickle_message(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run code when it is read, and is not loaded; where you trust its origin, convert"
        f' it in a sandbox: `python -c "import torch, safetensors.torch as s;'
        f" s.save_file(torch.load('{file.name}', weights_only=True), '{file.stem}.safetensors')\"`"
    )
