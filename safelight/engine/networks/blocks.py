"""What UNets and autoencoders are built of (Rombach et al. 2022, arXiv 2112.10752): [B, C, H, W] in, [B, C, H, W] out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ResnetBlock(nn.Module):
    """Two convolutions around a shift by the embedded timestep [B, `time_width`], beside a way past them."""

    def __init__(
        self, in_width: int, out_width: int, *, num_groups: int, eps: float, time_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_width, eps=eps)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_width)
        self.norm2 = nn.GroupNorm(num_groups, out_width, eps=eps)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.conv_shortcut = None if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        out = self.conv1(functional.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            out = out + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        out = self.conv2(functional.silu(self.norm2(out)))
        past = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return torch.add(past, out)


class Attention(nn.Module):
    """From `width` numbers for each of [B, N] places to what is found at [B, M] places of `heard_width` numbers."""

    def __init__(self, width: int, *, num_heads: int, heard_width: int, has_bias: bool = False) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=has_bias)
        self.to_k = nn.Linear(heard_width, width, bias=has_bias)
        self.to_v = nn.Linear(heard_width, width, bias=has_bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        query, key, value = self._split(self.to_q(x)), self._split(self.to_k(heard)), self._split(self.to_v(heard))
        found = functional.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.to_out[0](found.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] to [B, heads, N, D / heads]."""
        return x.view(*x.shape[:2], self._num_heads, -1).transpose(1, 2)


class PictureAttention(Attention):
    """Every place of a picture attends to every other, with one head: an autoencoder's."""

    def __init__(self, width: int, *, num_groups: int, eps: float) -> None:
        super().__init__(width, num_heads=1, heard_width=width, has_bias=True)
        self.group_norm = nn.GroupNorm(num_groups, width, eps=eps)

    def forward(self, x: torch.Tensor, heard: torch.Tensor | None = None) -> torch.Tensor:
        places = self.group_norm(x.flatten(2)).transpose(1, 2)
        return x + super().forward(places, places).transpose(1, 2).reshape(x.shape)


class GatedLinear(nn.Module):
    """One half of what it computes, let through by the other (Shazeer 2020, arXiv 2002.05202, GEGLU)."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, 2 * out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return torch.mul(value, functional.gelu(gate))


class FeedForward(nn.Module):
    """Each place by itself, through four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle one is where files count a dropout.
        self.net = nn.ModuleList([GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net[2](self.net[0](x))
        return out


class TransformerBlock(nn.Module):
    """Places attend to each other, then to the prompt, then each thinks for itself."""

    def __init__(self, width: int, *, num_heads: int, heard_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, num_heads=num_heads, heard_width=width)
        self.attn2 = Attention(width, num_heads=num_heads, heard_width=heard_width)
        self.ff = FeedForward(width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        places = self.norm1(x)
        x = self.attn1(places, places) + x
        x = self.attn2(self.norm2(x), hidden) + x
        return torch.add(x, self.ff(self.norm3(x)))


class Transformer(nn.Module):
    """Transformer blocks over the places of a picture, which hear the prompt `hidden` [B, L, D]."""

    def __init__(
        self, width: int, *, depth: int, num_heads: int, heard_width: int, num_groups: int, is_linear: bool
    ) -> None:
        super().__init__()
        self._is_linear = is_linear
        self.norm = nn.GroupNorm(num_groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if is_linear else nn.Conv2d(width, width, 1)
        blocks = (TransformerBlock(width, num_heads=num_heads, heard_width=heard_width) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(width, width) if is_linear else nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        sides = x.shape[2:]
        out = self.norm(x)
        if not self._is_linear:
            out = self.proj_in(out)
        out = out.permute(0, 2, 3, 1).flatten(1, 2)
        if self._is_linear:
            out = self.proj_in(out)
        for block in self.transformer_blocks:
            out = block(out, hidden)
        if self._is_linear:
            out = self.proj_out(out)
        out = out.view(x.shape[0], *sides, -1).permute(0, 3, 1, 2)
        if not self._is_linear:
            out = self.proj_out(out)
        return torch.add(x, out)


class Downsample(nn.Module):
    """Half as wide and high. Autoencoders pad on the far sides only."""

    def __init__(self, width: int, *, is_padded_evenly: bool) -> None:
        super().__init__()
        self._is_padded_evenly = is_padded_evenly
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1 if is_padded_evenly else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x if self._is_padded_evenly else functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice as wide and high, or of the height and width `sides`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, sides: list[int] | None = None) -> torch.Tensor:
        grown = functional.interpolate(x, size=sides, scale_factor=2.0 if sides is None else None, mode="nearest")
        out: torch.Tensor = self.conv(grown)
        return out
