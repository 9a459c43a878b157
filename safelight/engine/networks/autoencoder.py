"""The autoencoder between pictures and latents, trained with a KL term (Kingma and Welling 2013, arXiv 1312.6114)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from safelight.engine.networks.blocks import Downsample, PictureAttention, ResnetBlock, Upsample
from safelight.engine.networks.config import Config, check_fixed, read_int, read_ints, read_kinds

_EPS = 1e-6

_DEFAULTS: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}

_FIXED: Config = {"act_fn": "silu", "latents_mean": None, "latents_std": None, "shift_factor": None}

_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -30.0, 20.0


class Meant(NamedTuple):
    """The latents [B, C, h, w] that pictures may mean, by mean and deviation."""

    mean: torch.Tensor
    std: torch.Tensor


class Autoencoder(nn.Module):
    """Pictures [B, 3, H, W] from -1 to 1, latents [B, C, h, w]. Raises ValueError for a config that it cannot follow."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_fixed(config, _FIXED)
        self.config: Config = {**_DEFAULTS, **config}
        widths, num_channels = read_ints(self.config, "block_out_channels"), read_int(self.config, "latent_channels")
        read_kinds(self.config, "down_block_types", ("DownEncoderBlock2D",), len(widths))
        read_kinds(self.config, "up_block_types", ("UpDecoderBlock2D",), len(widths))
        self.encoder = Encoder(self.config, widths, num_channels)
        self.decoder = Decoder(self.config, widths, num_channels)
        has_inner, has_outer = self.config["use_quant_conv"], self.config["use_post_quant_conv"]
        self.quant_conv = nn.Conv2d(2 * num_channels, 2 * num_channels, 1) if has_inner else nn.Identity()
        self.post_quant_conv = nn.Conv2d(num_channels, num_channels, 1) if has_outer else nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype

    def encode(self, pictures: torch.Tensor) -> Meant:
        """What latents the pictures mean."""
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return Meant(mean, log_variance.clamp(_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE).mul(0.5).exp())

    def decode(self, latents: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]:
        """The pictures of latents. Called as diffusers' is, since compilers take both."""
        assert not return_dict
        return (self.decoder(self.post_quant_conv(latents)),)


class Encoder(nn.Module):
    """From pictures to means and logarithms of variances, as channels one after the other."""

    def __init__(self, config: Config, widths: tuple[int, ...], num_channels: int) -> None:
        super().__init__()
        num_groups, num_layers = read_int(config, "norm_num_groups"), read_int(config, "layers_per_block")
        self.conv_in = nn.Conv2d(read_int(config, "in_channels"), widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            block = _level(widths[max(0, level - 1)], width, num_layers=num_layers, num_groups=num_groups)
            if level < len(widths) - 1:
                block.add_module("downsamplers", nn.ModuleList([Downsample(width, is_padded_evenly=False)]))
            self.down_blocks.append(block)
        self.mid_block = Middle(widths[-1], num_groups=num_groups, attends=bool(config["mid_block_add_attention"]))
        self.conv_norm_out = nn.GroupNorm(num_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * num_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = _through(block, x)
        out: torch.Tensor = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """From latents to pictures."""

    def __init__(self, config: Config, widths: tuple[int, ...], num_channels: int) -> None:
        super().__init__()
        num_groups, num_layers = read_int(config, "norm_num_groups"), read_int(config, "layers_per_block") + 1
        rising = tuple(reversed(widths))
        self.conv_in = nn.Conv2d(num_channels, rising[0], 3, padding=1)
        self.mid_block = Middle(rising[0], num_groups=num_groups, attends=bool(config["mid_block_add_attention"]))
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(rising):
            block = _level(rising[max(0, level - 1)], width, num_layers=num_layers, num_groups=num_groups)
            if level < len(widths) - 1:
                block.add_module("upsamplers", nn.ModuleList([Upsample(width)]))
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(num_groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], read_int(config, "out_channels"), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = _through(block, x)
        out: torch.Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return out


class Middle(nn.Module):
    """Where the picture is smallest."""

    def __init__(self, width: int, *, num_groups: int, attends: bool) -> None:
        super().__init__()
        resnets = (ResnetBlock(width, width, num_groups=num_groups, eps=_EPS) for _ in range(2))
        attentions = [PictureAttention(width, num_groups=num_groups, eps=_EPS)] if attends else []
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: torch.Tensor = self.resnets[1](x)
        return out


def _level(in_width: int, width: int, *, num_layers: int, num_groups: int) -> nn.ModuleDict:
    resnets = (
        ResnetBlock(width if layer else in_width, width, num_groups=num_groups, eps=_EPS) for layer in range(num_layers)
    )
    return nn.ModuleDict({"resnets": nn.ModuleList(resnets)})


def _through(level: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layers in level.children():
        for layer in layers.children():
            x = layer(x)
    return x
