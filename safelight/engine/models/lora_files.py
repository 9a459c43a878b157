"""LoRA files: read, matched with the layers of a model, and refused where they belong to another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from safelight.engine.models.lora_names import LoraName, Part, read_name, unet_layer
from safelight.engine.models.weights import read_tensors
from safelight.errors import ModelError
from safelight.headers import read_header

_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """What one layer gets: `down` to the rank and `up` from it, alpha / rank already in it."""

    down: torch.Tensor
    up: torch.Tensor


def read_lora(file: Path, networks: Mapping[str, torch.nn.Module]) -> dict[str, LoraLayer]:
    """The layers of a LoRA by `network.module`, in the dtype and on the device of the modules they change.

    Raises ModelError where the file is damaged, of an unknown kind, or made for another model.
    """
    tables = {name: _changeable(network) for name, network in networks.items()}
    num_layers = _num_layers(networks["unet"])
    parts: dict[tuple[str, str], dict[Part, torch.Tensor]] = {}
    for name, tensor in read_tensors(file):
        read = read_name(name)
        if read is None:
            raise ModelError(f"{file} holds {name}, which no LoRA that this version knows has; take a plain LoRA")
        module = _module(read, tables.get(read.network, {}), num_layers)
        if module is None:
            raise ModelError(f"{file} changes {name}, which this model does not have: it was made for another model")
        parts.setdefault((read.network, module), {})[read.part] = tensor
    alphas = _stated_alphas(file)
    layers = {}
    for (network, module), each in parts.items():
        if Part.DOWN not in each or Part.UP not in each:
            raise ModelError(f"{file} holds only a part of the layer {network}.{module}; download it again")
        alpha = float(each[Part.ALPHA]) if Part.ALPHA in each else alphas.get(network)
        layer = networks[network].get_submodule(module)
        layers[f"{network}.{module}"] = _fitted(file, f"{network}.{module}", layer, each, alpha)
    return layers


def _module(read: LoraName, modules: Mapping[str, str], num_layers: int) -> str | None:
    if read.network == "unet":
        return unet_layer(read.layer, modules, num_layers=num_layers)
    return modules.get(read.layer)


def _changeable(network: torch.nn.Module) -> dict[str, str]:
    """The modules that a LoRA can change, by their names with underscores for dots."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = (name for name, module in network.named_modules() if isinstance(module, kinds))
    return {name.removeprefix("text_model.").replace(".", "_"): name for name in names}


def _num_layers(unet: torch.nn.Module) -> int:
    blocks = unet.get_submodule("down_blocks.0.resnets")
    return len(list(blocks.children()))


def _fitted(
    file: Path, name: str, module: torch.nn.Module, parts: Mapping[Part, torch.Tensor], alpha: float | None
) -> LoraLayer:
    weight = module.get_parameter("weight")
    down, up = parts[Part.DOWN], parts[Part.UP]
    if weight.ndim == 2:
        down, up = down.flatten(1), up.flatten(1)
    rank = down.shape[0]
    wanted_down = (rank, *weight.shape[1:])
    wanted_up = (weight.shape[0], rank) if weight.ndim == 2 else (weight.shape[0], rank, 1, 1)
    if down.shape != wanted_down or up.shape != wanted_up:
        raise ModelError(
            f"{file} changes {name} from {down.shape[1]} to {up.shape[0]} numbers; in this model it has"
            f" {weight.shape[1]} and {weight.shape[0]}: it was made for another model"
        )
    strength = 1.0 if alpha is None else alpha / rank
    place = {"device": weight.device, "dtype": weight.dtype}
    return LoraLayer(down.to(**place, copy=True), (up.float() * strength).to(**place))  # type: ignore[call-overload]


def _stated_alphas(file: Path) -> dict[str, float]:
    """The alpha of each network by PEFT's configuration, for files that have none beside their layers."""
    try:
        stated = json.loads(read_header(file).metadata.get(_METADATA, "{}"))
        found = {}
        for network in ("unet", "text_encoder", "text_encoder_2"):
            if stated.get(f"{network}.use_dora") or stated.get(f"{network}.alpha_pattern"):
                raise ModelError(f"{file} is a LoRA with a pattern of alphas or with DoRA, which is not supported")
            if (alpha := stated.get(f"{network}.lora_alpha")) is not None:
                is_stable = bool(stated.get(f"{network}.use_rslora"))
                rank = float(stated[f"{network}.r"])
                found[network] = float(alpha) * (math.sqrt(rank) if is_stable else 1.0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged (its metadata cannot be read); download it again") from error
    return found
