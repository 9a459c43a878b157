"""Stable Diffusion pipelines of the exact structure at reduced width, with random weights, saved as
diffusers saves them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SENTENCES = (
    "a photo of an astronaut riding a horse on mars . a red cat sleeps above two blue boats , the moon over the sea .",
    "a drawing of a house next to a tree at night , stars and snow , a rocket left of the yellow sun , nothing else !",
)
NUM_MERGES = 120
WINDOW = 77


def write_tokenizer(folder: Path, *, pad_token: str) -> None:
    """The four files of CLIP's tokenizer, learned from a few sentences. As in SD 2.1, only special_tokens_map.json
    knows the pad token; tokenizer_config.json says another."""
    folder.mkdir(parents=True)
    symbols = _byte_symbols()
    merges = _learn_merges()
    pieces = symbols + [symbol + "</w>" for symbol in symbols] + [left + right for left, right in merges]
    names = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**tokens, "pad_token": "<|endoftext|>", "model_max_length": WINDOW, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**tokens, "pad_token": pad_token}))


def make_pipeline(
    folder: Path, *, is_v2: bool, num_levels: int = 4, num_channels: int = 4, has_real_heads: bool = False
) -> StableDiffusionPipeline:
    """Like SD 1.x (epsilon, 8 heads, quick_gelu) or SD 2.1 (v, heads by level, linear projections, upcast attention).

    Real heads are 64 wide where the originals' are."""
    torch.manual_seed(2 if is_v2 else 1)
    write_tokenizer(folder / "tokenizer", pad_token="!" if is_v2 else "<|endoftext|>")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    width, num_heads = (64, 1) if has_real_heads else (48, 4)
    encoder = CLIPTextModel(encoder_config(tokenizer, width, num_heads, "gelu" if is_v2 else "quick_gelu"))
    widths = (64, 64, 128, 128) if has_real_heads else (32, 64, 128, 128)
    unet = UNet2DConditionModel(
        sample_size=96 if is_v2 else 64,
        in_channels=num_channels,
        out_channels=num_channels,
        block_out_channels=widths if is_v2 else (32, 64, 64, 64),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=[each // (64 if has_real_heads else 32) for each in widths] if is_v2 else 8,
        use_linear_projection=is_v2,
        upcast_attention=is_v2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * num_levels,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        latent_channels=num_channels,
        layers_per_block=1,
    )
    enliven(unet, encoder, vae)
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=_scheduler(is_v2),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # As the originals ship it: without the keys that were left at their defaults, the spacing among them.
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(_scheduler_config(is_v2)))
    restore_tokenizer(folder / "tokenizer", pad_token="!" if is_v2 else "<|endoftext|>")
    return pipeline


def restore_tokenizer(folder: Path, *, pad_token: str) -> None:
    """Saving adds a tokenizer.json and rewrites the rest; the originals have neither."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_tokenizer(folder, pad_token=pad_token)


def encoder_config(
    tokenizer: CLIPTokenizer, width: int, num_heads: int, activation: str, **others: int
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=num_heads,
        max_position_embeddings=WINDOW,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **others,
    )


def _scheduler_config(is_v2: bool) -> dict[str, object]:
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if is_v2 else "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    }


def _scheduler(is_v2: bool) -> DDIMScheduler:
    return DDIMScheduler.from_config(_scheduler_config(is_v2))


def enliven(unet: UNet2DConditionModel, encoder: torch.nn.Module, vae: AutoencoderKL) -> None:
    """Fresh networks answer almost nothing to prompt or noise; these answer loudly enough for differences to show."""
    with torch.no_grad():
        unet.conv_out.weight.mul_(6.0)
        for name, weight in unet.named_parameters():
            if "attn2.to_out" in name and weight.ndim == 2:
                weight.mul_(8.0)
        for weight in encoder.parameters():
            if weight.ndim == 2:
                weight.mul_(3.0)
        vae.decoder.conv_out.weight.mul_(3.0)


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte; `!` comes first, as in CLIP."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def _learn_merges() -> list[tuple[str, str]]:
    """Byte pair encoding by the book: merge the most frequent pair, again and again."""
    counts = Counter(" ".join(SENTENCES).split())
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < NUM_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        words = {word: _merged(pieces, best) for word, pieces in words.items()}
    return merges


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)
