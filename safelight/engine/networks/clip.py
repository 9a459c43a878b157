"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from safelight.engine.networks.config import Config, read_float, read_int


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": functional.gelu,
}

_DEFAULTS: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "use_attention_mask": False,
}

_FIRST_END_ID = 2
"""What configs from before 2023 say the end token is; there it is the token of the highest number."""


class Heard(NamedTuple):
    """Windows of tokens as the encoder heard them: `last` [n, L, D] normed, `last_but_one` [n, L, D] not, and the
    `summary` [n, S] of a whole window where the encoder has one."""

    last: torch.Tensor
    last_but_one: torch.Tensor
    summary: torch.Tensor | None


class TextEncoder(nn.Module):
    """Tokens to vectors; each token hears those before it. `has_summary`: projects what the end token heard.

    Raises ValueError for a config that it cannot follow.
    """

    def __init__(self, given: Config, *, has_summary: bool) -> None:
        super().__init__()
        config: Config = {**_DEFAULTS, **given}
        self.width = read_int(config, "hidden_size")
        self.num_tokens = read_int(config, "vocab_size")
        self.num_positions = read_int(config, "max_position_embeddings")
        self.uses_mask = bool(config["use_attention_mask"])
        self.embeddings = Embeddings(self.num_tokens, self.num_positions, self.width)
        num_layers = read_int(config, "num_hidden_layers")
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config, self.width) for _ in range(num_layers))})
        self.final_layer_norm = nn.LayerNorm(self.width, eps=read_float(config, "layer_norm_eps"))
        self._end_id = read_int(config, "eos_token_id")
        self.summary_width = read_int(config, "projection_dim") if has_summary else 0
        self.text_projection = nn.Linear(self.width, self.summary_width, bias=False) if has_summary else None

    @property
    def device(self) -> torch.device:
        return self.final_layer_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer_norm.weight.dtype

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Heard:
        """`ids` [n, L]; places where `mask` [n, L] is 0 are not heard."""
        heard = _heard_places(mask)
        x = before = self.embeddings(ids)
        for layer in self.encoder["layers"].children():
            before, x = x, layer(x, heard)
        last = self.final_layer_norm(x)
        if self.text_projection is None:
            return Heard(last, before, None)
        ends = ids.argmax(1) if self._end_id == _FIRST_END_ID else (ids == self._end_id).int().argmax(1)
        return Heard(last, before, self.text_projection(last[torch.arange(len(ids)), ends]))


class Embeddings(nn.Module):
    """Of tokens and of their places."""

    def __init__(self, num_tokens: int, num_positions: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(num_tokens, width)
        self.position_embedding = nn.Embedding(num_positions, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.token_embedding(ids)
        return embedded + self.position_embedding.weight[: ids.shape[1]]


class Layer(nn.Module):
    """Tokens hear those before them, then each thinks for itself."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        eps = read_float(config, "layer_norm_eps")
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.self_attn = SelfAttention(width, read_int(config, "num_attention_heads"))
        self.mlp = FeedForward(config, width)

    def forward(self, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), heard)
        return torch.add(x, self.mlp(self.layer_norm2(x)))


class SelfAttention(nn.Module):
    """Where `heard` [n, 1, L, L] is None, every token hears all before it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            each(x).view(*x.shape[:2], self._num_heads, -1).transpose(1, 2)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=heard, is_causal=heard is None)
        out: torch.Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Each token by itself."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        activation = str(config["hidden_act"])
        if activation not in _ACTIVATIONS:
            raise ValueError(f"hidden_act is {activation}; only {' and '.join(_ACTIVATIONS)} are supported")
        self._activation = _ACTIVATIONS[activation]
        inner_width = read_int(config, "intermediate_size")
        self.fc1, self.fc2 = nn.Linear(width, inner_width), nn.Linear(inner_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self._activation(self.fc1(x)))
        return out


def _heard_places(mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None:
        return None
    before = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    return before & mask.bool()[:, None, None, :]
