"""Calls of a UNet with random arguments, any of its rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from safelight.engine.models.forwards import Forward

SIDE = 16
NUM_TOKENS = 9


@dataclass(frozen=True)
class Call:
    """Arguments of a UNet, as many rows as there are."""

    x: torch.Tensor
    timestep: torch.Tensor
    inputs: dict[str, Any]

    def of(self, network: Forward, *rows: int) -> torch.Tensor:
        """What it answers for these rows."""
        with torch.inference_mode():
            inputs = {name: _rows(value, list(rows)) for name, value in self.inputs.items()}
            return network(self.x[list(rows)], self.timestep[list(rows)], return_dict=False, **inputs)[0].float()


def random_call(unet: UNet2DConditionModel, num_rows: int) -> Call:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(num_rows, *shape, generator=generator).to(unet.dtype)

    inputs: dict[str, Any] = {"encoder_hidden_states": draw(NUM_TOKENS, unet.config["cross_attention_dim"])}
    if unet.config["addition_embed_type"]:
        sizes = torch.tensor([[1023.0, 1000.0, 0.0, 0.0, 1023.0, 1000.0]])
        inputs["added_cond_kwargs"] = {"text_embeds": draw(128), "time_ids": sizes.expand(num_rows, -1).to(unet.dtype)}
    timestep = torch.linspace(3, 997, num_rows)
    return Call(draw(unet.config["in_channels"], SIDE, SIDE), timestep, inputs)


def _rows(value: Any, rows: list[int]) -> Any:
    return {name: _rows(each, rows) for name, each in value.items()} if isinstance(value, dict) else value[rows]
