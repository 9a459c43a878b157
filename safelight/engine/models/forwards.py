"""What runs a network in torch's place: the seam between model families and the ways to make networks fast."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

BackendName = Literal["auto", "torch", "openvino", "graphs", "compiled"]

Forward = Callable[..., tuple[torch.Tensor, ...]]
"""A network's forward pass as diffusers has it: called with `return_dict=False`, its output is the first of a tuple."""


class Compiler(Protocol):
    """Takes networks of one device and gives back what runs them faster, or the networks as they were."""

    takes_long: bool
    """Whether a first picture should not wait for it."""

    def unet(self, unet: Any, *args: torch.Tensor, **inputs: Any) -> Forward:
        """A conditional UNet's forward pass. The arguments are an example of one row."""
        ...

    def decoder(self, vae: Any, latent: torch.Tensor) -> Forward:
        """An autoencoder's `decode`. `latent` is an example of one row."""
        ...


class Faster(ABC):
    """A Forward that is not the network's own."""

    @abstractmethod
    def backend_for(self, latent_shape: tuple[int, ...], num_windows: int) -> str:
        """What runs latents and prompts of this size, with its version where that is not torch. What it leaves to
        torch, as graphs do with shapes that were not captured, is not told apart."""

    def release(self) -> bool:
        """Give the device memory of what it can make again back; whether there was any."""
        return False


def backend_name(forward: Forward, latent_shape: tuple[int, ...], num_windows: int = 1) -> str:
    """What runs a network for latents and prompts of this size."""
    return forward.backend_for(latent_shape, num_windows) if isinstance(forward, Faster) else "torch"


def cache_folder(backend: str) -> Path:
    """Where a backend keeps what it compiled from one start to the next. It can be deleted at any time."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "safelight" / backend


def shapes_of(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    """Without the rows."""
    return tuple(tuple(each.shape[1:]) for each in tensors)


def tensors_in(arguments: Any) -> Iterator[torch.Tensor]:
    """Of a tensor, a sequence or a mapping of such, or anything without: always in the same order."""
    if isinstance(arguments, torch.Tensor):
        yield arguments
    elif isinstance(arguments, Mapping):
        for each in arguments.values():
            yield from tensors_in(each)
    elif isinstance(arguments, (list, tuple)):
        for each in arguments:
            yield from tensors_in(each)


def with_tensors(arguments: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments with every tensor changed."""
    if isinstance(arguments, torch.Tensor):
        return change(arguments)
    if isinstance(arguments, Mapping):
        return {name: with_tensors(each, change) for name, each in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return [with_tensors(each, change) for each in arguments]
    return arguments


def with_rows(arguments: Any, rows: int) -> Any:
    """The one row of the arguments so many times, in tensors of their own: compilers look at strides too."""
    return with_tensors(arguments, lambda each: each.repeat(rows, *[1] * (each.ndim - 1)))
