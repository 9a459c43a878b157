"""Names of layers in LoRA files: diffusers' and PEFT's with dots, kohya's with underscores, old ones of both. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from safelight.engine.models.ldm_names import RESNET_LAYERS, UNET_ENDS, unet_place


class Part(StrEnum):
    """What a tensor of a LoRA is to its layer: out = out + scale * (alpha / rank) * up(down(x))."""

    DOWN = "down"
    UP = "up"
    ALPHA = "alpha"


class LoraName(NamedTuple):
    """A stored name taken apart: the network (`unet`, `text_encoder`, `text_encoder_2`), the layer with underscores for
    dots, and the part."""

    network: str
    layer: str
    part: Part


_ENDINGS = {
    ".lora_A.weight": Part.DOWN,
    ".lora_B.weight": Part.UP,
    ".lora_down.weight": Part.DOWN,
    ".lora_up.weight": Part.UP,
    ".lora.down.weight": Part.DOWN,
    ".lora.up.weight": Part.UP,
    ".lora_linear_layer.down.weight": Part.DOWN,
    ".lora_linear_layer.up.weight": Part.UP,
    "_lora.down.weight": Part.DOWN,
    "_lora.up.weight": Part.UP,
    ".alpha": Part.ALPHA,
}

_NETWORKS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}

_OLD_OUTPUT = re.compile(r"_to_out$")
_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)")


def read_name(stored: str) -> LoraName | None:
    """None for a name of no format that is known."""
    ending = next((each for each in _ENDINGS if stored.endswith(each)), None)
    prefix = next((each for each in _NETWORKS if stored.startswith(each)), None)
    if ending is None or prefix is None:
        return None
    layer = stored.removesuffix(ending).removeprefix(prefix).replace(".processor.", ".").replace(".", "_")
    layer = layer.removesuffix("_lora") if ending == ".alpha" else layer
    return LoraName(_NETWORKS[prefix], layer.removeprefix("text_model_"), _ENDINGS[ending])


def unet_layer(layer: str, modules: Mapping[str, str], *, num_layers: int) -> str | None:
    """The module of a UNet that `layer` means; `modules` are all of them by their names with underscores for dots, and
    `num_layers` how many resnets a block of its way down has. None where there is none."""
    for name in (layer, _OLD_OUTPUT.sub("_to_out_0", layer), _from_ldm(layer, num_layers)):
        if name in modules:
            return modules[name]
    return None


def _from_ldm(layer: str, num_layers: int) -> str:
    """Names of single-file checkpoints, which kohya's tools keep for Stable Diffusion XL."""
    ends = {old.replace(".", "_"): new for old, new in UNET_ENDS.items()}
    if layer in ends:
        return ends[layer].replace(".", "_")
    dotted = layer
    if block := _BLOCK.fullmatch(layer):
        dotted = f"{block[1]}_blocks.{block[2]}.{block[3]}.{_resnet_layer(block[4])}"
    elif layer.startswith("middle_block_"):
        number, _, rest = layer.removeprefix("middle_block_").partition("_")
        dotted = f"middle_block.{number}.{_resnet_layer(rest)}"
    place = unet_place(f"{dotted}.weight", num_layers=num_layers)
    return place.names[0].removesuffix(".weight").replace(".", "_") if place else layer


def _resnet_layer(rest: str) -> str:
    return next((old for old in RESNET_LAYERS if rest == old.replace(".", "_")), rest)
