"""The denoiser: a UNet that hears a prompt (Ronneberger et al. 2015, arXiv 1505.04597; Rombach et al. 2022, 2112.10752)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from safelight.engine.networks.blocks import Downsample, ResnetBlock, Transformer, Upsample
from safelight.engine.networks.config import (
    Config,
    check_fixed,
    read_float,
    read_int,
    read_ints,
    read_kinds,
    read_per_level,
)

_DEFAULTS: Config = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}

_FIXED: Config = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}

_MIDDLES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)

_LONGEST_PERIOD = 10_000.0


class UNet(nn.Module):
    """Raises ValueError for a config that it cannot follow."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_fixed(config, _FIXED)
        self.config: Config = {**_DEFAULTS, **config}
        plan = _Plan(self.config)
        first = plan.widths[0]
        self.conv_in = nn.Conv2d(read_int(self.config, "in_channels"), first, 3, padding=1)
        self.time_embedding = Embedding(first, plan.time_width)
        if self.config["addition_embed_type"] == "text_time":
            self.add_time_proj = Sinusoids(self.config, read_int(self.config, "addition_time_embed_dim"))
            width = read_int(self.config, "projection_class_embeddings_input_dim")
            self.add_embedding = Embedding(width, plan.time_width)
        self.time_proj = Sinusoids(self.config, first)
        self.down_blocks = nn.ModuleList(DownBlock(plan, level) for level in range(len(plan.widths)))
        self.mid_block = None if self.config["mid_block_type"] is None else MiddleBlock(plan)
        self.up_blocks = nn.ModuleList(UpBlock(plan, level) for level in reversed(range(len(plan.widths))))
        self.conv_norm_out = nn.GroupNorm(plan.num_groups, first, eps=plan.eps)
        self.conv_out = nn.Conv2d(first, read_int(self.config, "out_channels"), 3, padding=1)
        self._factor = 2 ** (len(plan.widths) - 1)

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def get_time_embed(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Sinusoids of the timesteps [R], in the dtype of `sample` [R, C, h, w]."""
        sinusoids: torch.Tensor = self.time_proj(timestep)
        return sinusoids.to(sample.dtype)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        *,
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        """What the model was trained to predict, [R, C, h, w], for latents, timesteps [R] and conditionings [R, L, D].
        Called as diffusers' is, since compilers take both."""
        assert not return_dict
        time = self._embed(sample, timestep, added_cond_kwargs)
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, time, encoder_hidden_states, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, time, encoder_hidden_states)
        is_even = not any(side % self._factor for side in sample.shape[2:])
        for block in self.up_blocks:
            x = block(x, time, encoder_hidden_states, skips, is_even)
        return (self.conv_out(functional.silu(self.conv_norm_out(x))),)

    def _embed(
        self, sample: torch.Tensor, timestep: torch.Tensor, added: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor:
        time: torch.Tensor = self.time_embedding(self.get_time_embed(sample, timestep))
        if self.config["addition_embed_type"] is None or added is None:
            return time
        sizes = self.add_time_proj(added["time_ids"].flatten()).reshape(sample.shape[0], -1)
        summary: torch.Tensor = self.add_embedding(torch.cat([added["text_embeds"], sizes], dim=-1).to(time.dtype))
        return time + summary


class _Plan:
    """The numbers that all blocks are built by."""

    def __init__(self, config: Config) -> None:
        self.widths = read_ints(config, "block_out_channels")
        num_levels = len(self.widths)
        self.time_width = 4 * self.widths[0]
        self.eps, self.num_groups = read_float(config, "norm_eps"), read_int(config, "norm_num_groups")
        self.num_layers = read_per_level(config, "layers_per_block", num_levels)
        self.depths = read_per_level(config, "transformer_layers_per_block", num_levels)
        self.num_heads = read_per_level(config, "attention_head_dim", num_levels)
        self.heard_widths = read_per_level(config, "cross_attention_dim", num_levels)
        self.is_linear = bool(config["use_linear_projection"])
        downs = read_kinds(config, "down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D"), num_levels)
        ups = read_kinds(config, "up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D"), num_levels)
        self.attends_down = tuple(kind.startswith("CrossAttn") for kind in downs)
        self.attends_up = tuple(kind.startswith("CrossAttn") for kind in reversed(ups))
        if config["mid_block_type"] not in _MIDDLES:
            raise ValueError(f"mid_block_type is {config['mid_block_type']}; supported are {_MIDDLES}")
        self.attends_middle = config["mid_block_type"] == _MIDDLES[0]

    def resnet(self, in_width: int, out_width: int) -> ResnetBlock:
        return ResnetBlock(in_width, out_width, num_groups=self.num_groups, eps=self.eps, time_width=self.time_width)

    def transformer(self, level: int) -> Transformer:
        return Transformer(
            self.widths[level],
            depth=self.depths[level],
            num_heads=self.num_heads[level],
            heard_width=self.heard_widths[level],
            num_groups=self.num_groups,
            is_linear=self.is_linear,
        )


class DownBlock(nn.Module):
    """One level on the way to fewer places; what it computes is put aside in `skips`."""

    def __init__(self, plan: _Plan, level: int) -> None:
        super().__init__()
        width, num_layers = plan.widths[level], plan.num_layers[level]
        in_widths = [plan.widths[max(0, level - 1)]] + [width] * (num_layers - 1)
        self.resnets = nn.ModuleList(plan.resnet(each, width) for each in in_widths)
        attends = plan.attends_down[level]
        self.attentions = nn.ModuleList(plan.transformer(level) for _ in range(num_layers if attends else 0))
        is_last = level == len(plan.widths) - 1
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(width, is_padded_evenly=True)])

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, hidden: torch.Tensor, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        for place, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[place](x, hidden)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MiddleBlock(nn.Module):
    """Where places are fewest."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        width, attends = plan.widths[-1], plan.attends_middle
        self.resnets = nn.ModuleList(plan.resnet(width, width) for _ in range(2 if attends else 1))
        self.attentions = nn.ModuleList([plan.transformer(-1)] if attends else [])

    def forward(self, x: torch.Tensor, time: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            x = resnet(attention(x, hidden), time)
        return x


class UpBlock(nn.Module):
    """One level on the way back, which takes up what was put aside."""

    def __init__(self, plan: _Plan, level: int) -> None:
        super().__init__()
        width, num_layers = plan.widths[level], plan.num_layers[level] + 1
        below, beside = plan.widths[min(level + 1, len(plan.widths) - 1)], plan.widths[max(0, level - 1)]
        resnets = []
        for layer in range(num_layers):
            from_below = width if layer else below
            put_aside = beside if layer == num_layers - 1 else width
            resnets.append(plan.resnet(from_below + put_aside, width))
        self.resnets = nn.ModuleList(resnets)
        attends = plan.attends_up[level]
        self.attentions = nn.ModuleList(plan.transformer(level) for _ in range(num_layers if attends else 0))
        self.upsamplers = nn.ModuleList([Upsample(width)] if level else [])

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, hidden: torch.Tensor, skips: list[torch.Tensor], is_even: bool
    ) -> torch.Tensor:
        for place, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if self.attentions:
                x = self.attentions[place](x, hidden)
        for upsample in self.upsamplers:
            # A side that is no multiple was rounded up on the way down.
            x = upsample(x, None if is_even else list(skips[-1].shape[2:]))
        return x


class Sinusoids(nn.Module):
    """Numbers [N] as `width` sines and cosines [N, width], in float32 (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self._width = width
        self._is_cosine_first = bool(config["flip_sin_to_cos"])
        self._shift = read_float(config, "freq_shift")

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        half = self._width // 2
        exponents = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=numbers.device)
        angles = numbers[:, None].float() * torch.exp(exponents / (half - self._shift))[None]
        parts = (angles.cos(), angles.sin()) if self._is_cosine_first else (angles.sin(), angles.cos())
        return functional.pad(torch.cat(parts, dim=-1), (0, self._width % 2))


class Embedding(nn.Module):
    """Two layers from sinusoids, or a summary, to what all blocks are shifted by."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(in_width, out_width), nn.Linear(out_width, out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear_2(functional.silu(self.linear_1(x)))
        return out
