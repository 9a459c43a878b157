"""A whole pipeline written the other way round: as the single file that the community trades."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(pipeline: DiffusionPipeline, file: Path, **others: torch.Tensor) -> None:
    """A checkpoint of SD 1.x, 2.x or XL, by what the pipeline is; `others` are written beside it."""
    weights = {f"model.diffusion_model.{name}": each for name, each in unet_tensors(pipeline.unet).items()}
    weights |= {f"first_stage_model.{name}": each for name, each in vae_tensors(pipeline.vae).items()}
    first = pipeline.text_encoder
    if hasattr(pipeline, "text_encoder_2"):
        weights |= with_prefix("conditioner.embedders.0.transformer.text_model.", bare(first))
        weights |= with_prefix("conditioner.embedders.1.model.", open_clip_tensors(pipeline.text_encoder_2))
    elif pipeline.unet.config.use_linear_projection:
        weights |= with_prefix("cond_stage_model.model.", with_last_layer(open_clip_tensors(first)))
    else:
        weights |= with_prefix("cond_stage_model.transformer.text_model.", bare(first))
    save_file({name: tensor.contiguous() for name, tensor in (weights | others).items()}, file)


def unet_tensors(unet: torch.nn.Module) -> Tensors:
    num_layers = int(unet.config.layers_per_block)  # type: ignore[union-attr, arg-type]
    has_attention = ["CrossAttn" in each for each in unet.config.up_block_types]  # type: ignore[union-attr]
    return {unet_name(name, num_layers, has_attention): each for name, each in unet.state_dict().items()}


def unet_name(name: str, num_layers: int, has_attention: list[bool]) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours + "."):
            return theirs + within(name.removeprefix(ours), "resnets" in ours)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(\..+)", name)
    assert found is not None, name
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    index = block * (num_layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{index + num_layers + 1}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        return f"output_blocks.{index + num_layers}.{2 if has_attention[block] else 1}{rest}"
    place = f"input_blocks.{index + layer + 1}" if way == "down" else f"output_blocks.{index + layer}"
    return f"{place}.0{within(rest, True)}" if kind == "resnets" else f"{place}.1{rest}"


def within(rest: str, is_resnet: bool) -> str:
    _, part, *others = rest.split(".")
    return ".".join(["", RESNET[part] if is_resnet else part, *others])


def vae_tensors(vae: torch.nn.Module) -> Tensors:
    last = len(vae.config.block_out_channels) - 1  # type: ignore[union-attr, arg-type]
    found = {}
    for name, tensor in vae.state_dict().items():
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        old = old.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        old = old.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        old = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", old)
        old = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", old)
        old = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", old)
        old = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", old)
        old = old.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        # Attention was written as convolutions of one pixel.
        found[old] = tensor[:, :, None, None] if ".attn_1." in old and tensor.ndim == 2 else tensor
    return found


def open_clip_tensors(encoder: torch.nn.Module) -> Tensors:
    found: dict[str, torch.Tensor] = {}
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for new_name, tensor in bare(encoder).items():
        if new_name == "text_projection.weight":
            found["text_projection"] = tensor.T
            continue
        name = new_name
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        if part := re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            stacked.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = tensor
        else:
            found[name] = tensor
    return found | {name: torch.cat([parts[each] for each in "qkv"]) for name, parts in stacked.items()}


def with_last_layer(tensors: Tensors) -> Tensors:
    """With one layer more, which is never read, and the numbers of its other half."""
    found = dict(tensors)
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("transformer.")}
    for name, tensor in tensors.items():
        if name.startswith("transformer.resblocks.0."):
            found[name.replace(".0.", f".{max(layers) + 1}.", 1)] = torch.randn_like(tensor)
    width = len(tensors["ln_final.weight"])
    return found | {"text_projection": torch.randn(width, width), "logit_scale": torch.tensor(1.0)}


def bare(encoder: torch.nn.Module) -> Tensors:
    return {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}
