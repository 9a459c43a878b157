"""Names of layers in single-file checkpoints, and what diffusers and transformers call the same layers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from safelight.engine.models.weights import Place

UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

RESNET_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}

_VAE = (
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)

_OPEN_CLIP_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}

_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_UNET_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_CLIP_STACKED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def unet_place(name: str, *, num_layers: int) -> Place | None:
    """Of a UNet with `num_layers` resnets in each block of its way down."""
    for old, new in UNET_ENDS.items():
        if name.startswith(old + "."):
            return Place((new + name.removeprefix(old),))
    if name.startswith("middle_block."):
        number, _, rest = name.removeprefix("middle_block.").partition(".")
        return Place((f"mid_block.{_MIDDLE[number]}.{_renamed(rest, RESNET_LAYERS)}",)) if number in _MIDDLE else None
    block = _UNET_BLOCK.fullmatch(name)
    return None if block is None else Place((_in_unet_block(*block.groups(), num_layers=num_layers),))


def vae_place(name: str, *, num_levels: int) -> Place | None:
    """Of an autoencoder with `num_levels` resolutions; the file counts them from the finest on both ways."""

    def climb(found: re.Match[str]) -> str:
        kind = {"block": "resnets", "upsample": "upsamplers.0"}[found[2]]
        return f"up_blocks.{num_levels - 1 - int(found[1])}.{kind}."

    if name.startswith("loss."):
        return None
    name = re.sub(r"up\.(\d+)\.(block|upsample)\.", climb, name)
    for old, new in _VAE:
        name = re.sub(old, new, name)
    return Place((name,))


def clip_place(name: str) -> Place | None:
    """Of OpenAI's text encoder, which such files keep in transformers' own names."""
    return Place((name,))


def open_clip_place(name: str, *, num_layers: int, has_projection: bool) -> Place | None:
    """Of OpenCLIP's text encoder, as far as its first `num_layers` layers."""
    if name == "text_projection":
        return Place(("text_projection.weight",), is_transposed=True) if has_projection else None
    if name in _OPEN_CLIP_ENDS:
        return Place((_OPEN_CLIP_ENDS[name],))
    if stacked := _OPEN_CLIP_STACKED.fullmatch(name):
        where = f"encoder.layers.{stacked[1]}.self_attn"
        names = tuple(f"{where}.{part}_proj.{stacked[2]}" for part in "qkv")
        return Place(names) if int(stacked[1]) < num_layers else None
    block = _OPEN_CLIP_BLOCK.fullmatch(name)
    if block is None or int(block[1]) >= num_layers or block[2] not in _OPEN_CLIP_LAYER:
        return None
    return Place((f"encoder.layers.{block[1]}.{_OPEN_CLIP_LAYER[block[2]]}.{block[3]}",))


def _in_unet_block(way: str, index: str, part: str, rest: str, *, num_layers: int) -> str:
    number, layer = divmod(int(index) - 1 if way == "input" else int(index), num_layers + 1)
    where = f"{'down' if way == 'input' else 'up'}_blocks.{number}"
    if rest.startswith("op."):
        return f"{where}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{where}.upsamplers.0.{rest}"
    if part == "0":
        return f"{where}.resnets.{layer}.{_renamed(rest, RESNET_LAYERS)}"
    return f"{where}.attentions.{layer}.{rest}"


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if rest.startswith(old + "."):
            return new + rest.removeprefix(old)
    return rest
