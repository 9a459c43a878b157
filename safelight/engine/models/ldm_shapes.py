"""The configs of networks in single-file checkpoints, read off the shapes of their tensors. Pure.

What shapes cannot tell (numbers of heads, activations, scales) is the family's. LookupError where a layer is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from safelight.engine.models.weights import Config

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by name, the prefix of the network taken off."""

HEAD_WIDTH = 64
"""Of every attention in these families but the UNet of Stable Diffusion 1.x."""

_FIRST_FAMILY_HEADS = 8
_NUM_SIZES = 6
"""Numbers by which Stable Diffusion XL is told about sizes."""

_VIT_H_LAYERS_READ = 23


def unet_config(shapes: Shapes, *, is_first_family: bool, summary_width: int) -> Config:
    """Of a UNet2DConditionModel; `summary_width` is what it gets of the whole text beside its tokens, 0
    in most families."""
    num_layers = layers_per_block(shapes)
    levels = range(0, _count(shapes, r"input_blocks\.(\d+)\.") - 1, num_layers + 1)
    blocks = [f"input_blocks.{first + 1}." for first in levels]
    channels = [shapes[block + "0.in_layers.2.weight"][0] for block in blocks]
    depths = [_count(shapes, re.escape(block) + r"1\.transformer_blocks\.(\d+)\.") for block in blocks]
    attending = next(block for block, depth in zip(blocks, depths, strict=True) if depth)
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    config: Config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": num_layers,
        "down_block_types": [kind + "DownBlock2D" for kind in kinds],
        "up_block_types": [kind + "UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "cross_attention_dim": shapes[attending + "1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[attending + "1.proj_in.weight"]) == 2,
        "attention_head_dim": _FIRST_FAMILY_HEADS if is_first_family else [width // HEAD_WIDTH for width in channels],
        # Its 768 px version needs it in half precision; the others do not mind.
        "upcast_attention": not is_first_family and not summary_width,
    }
    return config | _added_conditioning(shapes, summary_width)


def vae_config(shapes: Shapes, *, is_xl: bool) -> Config:
    """Of an AutoencoderKL."""
    num_levels = num_vae_levels(shapes)
    return {
        "block_out_channels": [shapes[f"decoder.up.{level}.block.0.conv1.weight"][0] for level in range(num_levels)],
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "layers_per_block": _count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": 0.13025 if is_xl else 0.18215,
        "force_upcast": True,
    }


def clip_config(shapes: Shapes) -> Config:
    """Of OpenAI's text encoder."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    layer = prefix + "encoder.layers."
    return _text_config(
        tokens=shapes[prefix + "embeddings.token_embedding.weight"],
        num_positions=shapes[prefix + "embeddings.position_embedding.weight"][0],
        num_layers=_count(shapes, re.escape(layer) + r"(\d+)\."),
        inner_width=shapes[layer + "0.mlp.fc1.weight"][0],
        activation="quick_gelu",
    )


def open_clip_config(shapes: Shapes, *, is_last_layer_read: bool) -> Config:
    """Of OpenCLIP's text encoder. Where the last layer is not read it is not loaded; files that were converted back and
    forth have lost it already."""
    num_layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    if not is_last_layer_read and num_layers != _VIT_H_LAYERS_READ:
        num_layers -= 1
    config = _text_config(
        tokens=shapes["token_embedding.weight"],
        num_positions=shapes["positional_embedding"][0],
        num_layers=num_layers,
        inner_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        activation="gelu",
    )
    return config | ({"projection_dim": shapes["text_projection"][1]} if is_last_layer_read else {})


def _text_config(
    *, tokens: tuple[int, ...], num_positions: int, num_layers: int, inner_width: int, activation: str
) -> Config:
    num_tokens, width = tokens
    return {
        "vocab_size": num_tokens,
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": num_positions,
        "hidden_act": activation,
        "bos_token_id": num_tokens - 2,
        "eos_token_id": num_tokens - 1,
        "pad_token_id": num_tokens - 1,
    }


def _added_conditioning(shapes: Shapes, summary_width: int) -> Config:
    if not summary_width:
        return {}
    width = shapes["label_emb.0.0.weight"][1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - summary_width) // _NUM_SIZES,
        "projection_class_embeddings_input_dim": width,
    }


def layers_per_block(shapes: Shapes) -> int:
    """Resnets of a UNet before its first way down in resolution."""
    steps = [int(found[1]) for name in shapes if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    return min(steps) - 1 if steps else _count(shapes, r"input_blocks\.(\d+)\.") - 1


def num_vae_levels(shapes: Shapes) -> int:
    """Resolutions of an autoencoder."""
    return _count(shapes, r"decoder\.up\.(\d+)\.")


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand where `pattern` has its group."""
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})
