"""Weights from safetensors files into networks, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from safelight.errors import ModelError
from safelight.headers import read_header

Config = dict[str, object]
"""A config.json as it came: every value is checked where it is used."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored tensor goes: under one name, or cut along its first dimension into equal parts,
    one for each name."""

    names: tuple[str, ...]
    is_transposed: bool = False


def keep_name(name: str) -> Place | None:
    """For files that use the network's own names."""
    return Place((name,))


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """One network on the disk: what describes it, its files, and where what they hold goes (None: it is not its)."""

    where: Path
    config: Config
    files: Sequence[Path]
    place_of: Callable[[str], Place | None] = field(default=keep_name)


def load_weights(
    module: torch.nn.Module,
    component: Component,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rename: Callable[[str], str | None] = lambda name: name,
) -> None:
    """Fill a module that was made on the meta device. `rename` brings names of older versions up to date, or leaves a
    tensor out with None. Raises ModelError where names or shapes do not match the module."""
    wanted = module.state_dict()
    found: dict[str, torch.Tensor] = {}
    for file in component.files:
        for stored_name, name, tensor in _entries(file, component.place_of, rename):
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
        raise ModelError(f"{component.files[0]} lacks {len(missing)} tensors, the first {missing[0]}; {_AGAIN}")
    module.load_state_dict(found, strict=True, assign=True)
    module.requires_grad_(False).eval()


def read_tensors(
    file: Path, is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file, mapped, not copied. Raises ModelError."""
    read_header(file)
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if is_wanted(name):
                    yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); download it again") from error


def count_elements(file: Path) -> int:
    """Numbers in all its tensors but a second copy kept for training, by its header. Raises ModelError."""
    shapes = read_header(file).shapes
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("model_ema."))


_AGAIN = "config and weights belong to different models, or a download was cut short: download the model again"


def _entries(
    file: Path, place_of: Callable[[str], Place | None], rename: Callable[[str], str | None]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(stored name, name in the network, tensor) for everything that has a place."""
    for stored_name, tensor in read_tensors(file, lambda name: place_of(name) is not None):
        place = place_of(stored_name)
        assert place is not None
        parts = (tensor.T if place.is_transposed else tensor).chunk(len(place.names)) if place.names else ()
        for old_name, part in zip(place.names, parts, strict=True):
            name = rename(old_name)
            if name is not None:
                yield stored_name, name, part


def _placed(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A copy in memory of our own: a mapped file could be changed under a running model."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=dtype, memory_format=layout, copy=True)
