"""What a model's weights hold, and taking them from one device to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from safelight.engine.models.base import ImageModel
from safelight.engine.models.weights import count_elements
from safelight.weight_files import find_files

_STEMS = ("diffusion_pytorch_model", "model")

_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


def num_bytes_of(model: ImageModel) -> int:
    """Of all its weights, those that networks share counted once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}
    return sum(held.values())


def number_bytes_of(model: ImageModel) -> int:
    """The widest of its weights; 2 where it has none."""
    return max((tensor.itemsize for tensor in _tensors(model) if tensor.is_floating_point()), default=2)


def move_model(model: ImageModel, device: torch.device) -> None:
    """Take all weights to `device`; returns when they are there. The model must not be in use."""
    for network in model.networks:
        network.to(device)
    if model.device.type == "cuda":
        # Not the whole device: that would break a capture which another thread makes at this moment.
        torch.cuda.current_stream(model.device).synchronize()


def estimate_bytes(weights: Path, dtype: torch.dtype) -> int:
    """What the model in `weights` will hold in `dtype`, by the headers of its files. Raises ModelError."""
    files = [weights] if weights.is_file() else list(_files_in(weights))
    return sum(map(count_elements, files)) * dtype.itemsize


def _files_in(folder: Path) -> Iterator[Path]:
    for component in sorted(each for each in folder.iterdir() if each.is_dir() and each.name not in _NOT_LOADED):
        stem = next((stem for stem in _STEMS if any(component.glob(f"{stem}*.safetensors*"))), None)
        if stem is not None:
            yield from find_files(component, stem)


def _tensors(model: ImageModel) -> Iterator[torch.Tensor]:
    for network in model.networks:
        yield from network.parameters()
        yield from network.buffers()
