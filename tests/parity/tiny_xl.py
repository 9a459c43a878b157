"""Stable Diffusion XL's exact structure at reduced width, with random weights, saved as diffusers saves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .tiny_models import encoder_config, enliven, restore_tokenizer, write_tokenizer

WIDTHS = (64, 128)
"""Of the two text encoders."""

PAD_TOKENS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def make_xl_pipeline(folder: Path) -> None:
    """Two text encoders, a summary of 128 numbers, three levels with 0, 1 and 2 transformers, sizes as conditioning."""
    torch.manual_seed(3)
    tokenizers = []
    for name, pad_token in PAD_TOKENS.items():
        write_tokenizer(folder / name, pad_token=pad_token)
        tokenizers.append(CLIPTokenizer.from_pretrained(folder / name))
    first = CLIPTextModel(encoder_config(tokenizers[0], WIDTHS[0], 1, "quick_gelu"))
    second = CLIPTextModelWithProjection(encoder_config(tokenizers[1], WIDTHS[1], 2, "gelu", projection_dim=WIDTHS[1]))
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(64, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=[1, 1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + WIDTHS[1],
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )
    enliven(unet, first, vae)
    enliven(unet, second, vae)
    pipeline = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    for name, pad_token in PAD_TOKENS.items():
        restore_tokenizer(folder / name, pad_token=pad_token)
