"""LoRAs beside the networks they change (Hu et al. 2021, arXiv 2106.09685): added where their layers run, never merged
into weights, so that they come and go between two steps and leave no rounding behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.functional import conv2d, linear

from safelight.engine.models.lora_files import LoraLayer, read_lora
from safelight.errors import ModelError
from safelight.runs import LoraUse


class Adapters:
    """The LoRAs of one model. Thread: engine. `networks` are those that LoRAs change, by the names their files use."""

    def __init__(self, networks: Mapping[str, torch.nn.Module]) -> None:
        self._networks = networks
        self._paths: Mapping[str, Path] = {}
        self._loaded: dict[str, torch.nn.ModuleDict] = {}
        self._targets: dict[str, _Target] = {}
        self._active: tuple[LoraUse, ...] = ()

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """What holds the weights of those that are loaded."""
        return tuple(self._loaded.values())

    def register(self, paths: Mapping[str, Path]) -> None:
        """Files by name; each is read when it is first used."""
        self._paths = paths

    def load(self, name: str) -> None:
        """Read the file of `name`, once. Raises ModelError with the remedy."""
        if name in self._loaded:
            return
        if name not in self._paths:
            raise ModelError(
                f"no LoRA {name} was registered with this deployment; name it with --lora and deploy again"
            )
        layers = read_lora(self._paths[name], self._networks)
        # Module names hold dots, which a ModuleDict's keys must not.
        self._loaded[name] = torch.nn.ModuleDict(
            {key.replace(".", "/"): _Added(layer) for key, layer in layers.items()}
        )
        for key in layers:
            network, _, module = key.partition(".")
            if key not in self._targets:
                self._targets[key] = _Target(self, key, self._networks[network].get_submodule(module))

    @contextlib.contextmanager
    def active(self, loras: tuple[LoraUse, ...]) -> Iterator[None]:
        """Within the block the networks run with these, and no others."""
        self._active = loras
        try:
            yield
        finally:
            self._active = ()

    def change(self, key: str, module: torch.nn.Module, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What the layer `key` answers with the active LoRAs, when alone it answers `out`."""
        for use in self._active:
            added = self._loaded[use.name]
            place = key.replace(".", "/")
            if place in added:
                out = torch.add(out, added[place](module, x), alpha=use.scale)
        return out


class _Target:
    """A layer that at least one LoRA changes."""

    def __init__(self, adapters: Adapters, key: str, module: torch.nn.Module) -> None:
        self._adapters = adapters
        self._key = key
        module.register_forward_hook(self._changed)

    def _changed(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        return self._adapters.change(self._key, module, inputs[0], out)


class _Added(torch.nn.Module):
    """The two small matrices (or convolutions) of one layer."""

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.register_buffer("down", layer.down)
        self.register_buffer("up", layer.up)

    def forward(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        down, up = self.get_buffer("down"), self.get_buffer("up")
        if isinstance(module, torch.nn.Conv2d):
            return conv2d(conv2d(x, down, None, module.stride, module.padding, module.dilation), up)
        return linear(linear(x, down), up)
