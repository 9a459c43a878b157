"""LoRAs with random weights, written in the formats that are traded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from .ldm_files import unet_name

CHANGED = re.compile(r"\.(attn\d\.to_[qkv]|attn\d\.to_out\.0|ff\.net\.0\.proj|conv1|q_proj|fc2)$")
RANK = 4

Layers = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]


def make_layers(pipeline: DiffusionPipeline, seed: int, *, has_text: bool = True) -> Layers:
    """(network, module) -> down and up, for attention, one feed-forward layer and one convolution of every block."""
    generator = torch.Generator().manual_seed(seed)
    names = ["unet", *(["text_encoder", "text_encoder_2"] if has_text else [])]
    layers: Layers = {}
    for network in (each for each in names if getattr(pipeline, each, None) is not None):
        for name, module in getattr(pipeline, network).named_modules():
            if CHANGED.search("." + name):
                weight = module.weight
                down = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.5 / weight[0].numel() ** 0.5
                up = torch.randn(weight.shape[0], RANK, *([1, 1] if weight.ndim == 4 else []), generator=generator)
                layers[network, name] = (down, up * 0.5)
    return layers


def save_peft(layers: Layers, file: Path) -> Path:
    """As diffusers saves them today."""
    tensors = {}
    for (network, module), (down, up) in layers.items():
        tensors[f"{network}.{_prefixed(network, module)}.lora_A.weight"] = down
        tensors[f"{network}.{_prefixed(network, module)}.lora_B.weight"] = up
    save_file(tensors, file)
    return file


def save_old(layers: Layers, file: Path) -> Path:
    """As diffusers saved attention in its first year."""
    tensors = {}
    for (network, module), (down, up) in layers.items():
        head, _, leaf = module.removesuffix(".0").rpartition(".")
        tensors[f"{network}.{head}.processor.{leaf}_lora.down.weight"] = down
        tensors[f"{network}.{head}.processor.{leaf}_lora.up.weight"] = up
    save_file(tensors, file)
    return file


def save_kohya(layers: Layers, file: Path, pipeline: DiffusionPipeline, *, alpha: float, is_ldm: bool) -> Path:
    """As kohya's tools save them; for XL with the names of single-file checkpoints."""
    encoders = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"} if is_ldm else {"text_encoder": "lora_te"}
    config = pipeline.unet.config
    has_attention = ["CrossAttn" in each for each in config.up_block_types]
    tensors = {}
    for (network, module), (down, up) in layers.items():
        name = _prefixed(network, module)
        if network == "unet" and is_ldm:
            name = unet_name(f"{module}.weight", config.layers_per_block, has_attention).removesuffix(".weight")
        key = f"{encoders.get(network, 'lora_unet')}_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    save_file(tensors, file)
    return file


def of_unet(layers: Layers) -> Layers:
    return {key: each for key, each in layers.items() if key[0] == "unet"}


@contextlib.contextmanager
def merged_text(pipeline: DiffusionPipeline, changes: Iterable[tuple[Layers, float]]) -> Iterator[None]:
    """LoRAs in the weights of the text encoders, by the definition: this diffusers cannot load them
    with this transformers."""
    kept = {}
    for layers, scale in changes:
        for (network, module), (down, up) in layers.items():
            if network != "unet":
                weight = getattr(pipeline, network).get_submodule(module).weight
                kept.setdefault((network, module), weight.detach().clone())
                weight.data += scale * (up @ down)
    yield
    for (network, module), weight in kept.items():
        getattr(pipeline, network).get_submodule(module).weight.data = weight


def _prefixed(network: str, module: str) -> str:
    return module if network == "unet" or module.startswith("text_model.") else f"text_model.{module}"
