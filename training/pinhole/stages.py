"""The stages in the order they run, each with its budget and its checkpoint. What a stage computes
lives in its own module."""

import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.pinhole.autoencoder import (
    Batch,
    Preview,
    decoder_loss,
    draw_batch,
    encoder_loss,
    make_autoencoder,
    picture_batch,
)
from training.pinhole.denoiser import denoiser_loss, draw_timesteps, draw_tokens, make_denoiser, signal_shares
from training.pinhole.echoes import Denoiser, make_echo_shard
from training.pinhole.latents import SCALING_FACTOR, LatentStore, make_shard, shard_path
from training.pinhole.optimizers import make_optimizers
from training.pinhole.text_encoder import LayoutReader, make_text_encoder, text_loss
from training.pinhole.text_encoder import draw_batch as draw_text_batch
from training.pinhole.tokenizer import load_tokenizer, make_tokenizer
from training.pinhole.trainer import Budget, Step, Trainer, load_modules

Size = tuple[int, int]
Mix = dict[Size, tuple[float, int]]

PICTURE_MIX: Mix = {
    (256, 256): (0.4, 4),
    (384, 384): (0.1, 2),
    (512, 512): (0.3, 1),
    (512, 768): (0.17, 1),
    (768, 512): (0.03, 1),
}
"""Width and height: share of the steps, pictures in a step. About as many pixels in every step."""

WHOLE_SHARE = 0.35
"""Of the decoder's steps, how many draw the picture at its full size."""

LATER_RATE = 1 / 3
"""Of the full learning rates, for an autoencoder that goes on from trained weights: at the full ones its colours go
astray within minutes."""

ECHO_SHARE = 0.65
"""Of the decoder's steps, how many are given echoes; the others have true latents."""

LATENT_MIX: Mix = {
    (256, 256): (0.4, 192),
    (384, 384): (0.1, 80),
    (512, 512): (0.32, 48),
    (512, 768): (0.15, 32),
    (768, 512): (0.03, 32),
}

SHARDS_PER_ROUND: dict[Size, int] = {(256, 256): 8, (384, 384): 3, (512, 512): 6, (512, 768): 6, (768, 512): 1}
ECHO_SIZES: tuple[Size, ...] = ((256, 256), (384, 384), (512, 512), (512, 768))
"""One shard of each in a round; lying pictures are too like standing ones to be worth the time."""


def _choose_size(random: np.random.Generator, mix: Mix, among: Collection[Size] | None = None) -> Size:
    """By the shares of the mix, of the sizes that can be had now."""
    sizes = [size for size in mix if among is None or size in among]
    shares = np.array([mix[size][0] for size in sizes])
    return sizes[int(random.choice(len(sizes), p=shares / shares.sum()))]


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_decoder(folder: Path, budget: Budget) -> AutoencoderKL:
    torch.manual_seed(1)
    device = pick_device()
    vae, preview = make_autoencoder().to(device), Preview().to(device)
    trainer = _autoencoder_trainer(
        "decoder", {"decoder": vae.decoder, "quant": vae.post_quant_conv, "preview": preview}, folder, budget
    )
    echoes = {size: LatentStore(folder / "echoes", size) for size in PICTURE_MIX}

    def step(random: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        size = _choose_size(random, PICTURE_MIX)
        is_whole = bool(random.random() < WHOLE_SHARE)
        count = PICTURE_MIX[size][1] * (1 if is_whole else 3)
        batch = _decoder_batch(random, size, count, echoes).to(device)
        loss, news = decoder_loss(vae, preview, batch, is_whole=is_whole)
        return loss, count, news

    trainer.run(step)
    return vae


def _decoder_batch(random: np.random.Generator, size: Size, count: int, echoes: dict[Size, LatentStore]) -> Batch:
    if random.random() < ECHO_SHARE and len(echoes[size]):
        return picture_batch(*echoes[size].draw(random, count), *size)
    return draw_batch(random, *size, count)


def train_encoder(folder: Path, budget: Budget) -> AutoencoderKL:
    torch.manual_seed(1)
    device = pick_device()
    vae = make_autoencoder().to(device)
    trainer = _autoencoder_trainer("encoder", {"encoder": vae.encoder, "quant": vae.quant_conv}, folder, budget)

    def step(random: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        width, height = _choose_size(random, PICTURE_MIX)
        batch = draw_batch(random, width, height, 2 * PICTURE_MIX[width, height][1]).to(device)
        loss, news = encoder_loss(vae, batch)
        return loss, len(batch.pixels), news

    trainer.run(step)
    return vae


def _autoencoder_trainer(name: str, modules: dict[str, nn.Module], folder: Path, budget: Budget) -> Trainer:
    optimizers = make_optimizers(modules, muon_rate=0.006, adam_rate=1e-3, kernel_rate=6e-5, weight_decay=1.0)
    trainer = Trainer(
        name, modules, optimizers, folder=folder, budget=budget, seed=1, decay_from=0.25, later_rate=LATER_RATE
    )
    trainer.resume()
    return trainer


def train_text_encoder(folder: Path, budget: Budget) -> tuple[CLIPTokenizer, CLIPTextModel]:
    torch.manual_seed(2)
    tokenizer = make_tokenizer(folder / "tokenizer")
    device = pick_device()
    encoder, reader = make_text_encoder(tokenizer).to(device), LayoutReader().to(device)
    modules = {"encoder": encoder, "reader": reader}
    optimizers = make_optimizers(modules, muon_rate=0.01, adam_rate=1e-3)
    trainer = Trainer("text", modules, optimizers, folder=folder, budget=budget, seed=2)
    trainer.resume()

    def step(random: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        batch = draw_text_batch(random, tokenizer, 96)
        loss, news = text_loss(encoder, reader, batch.to(device))
        return loss, len(batch.tokens), news

    trainer.run(step)
    return tokenizer, encoder


def make_latents(folder: Path, budget: Budget) -> None:
    """Round after round until the time is over; at least one round, or there would be nothing to train on."""
    began, number = time.monotonic(), 0
    while number == 0 or budget.progress(seconds=time.monotonic() - began, steps=number) < 1:
        for size, shards in SHARDS_PER_ROUND.items():
            for k in range(shards):
                make_shard(folder / "latents", size, number * shards + k)
        number += 1
        print(f"latents: round {number}, {time.monotonic() - began:.0f} s", flush=True)


def make_echoes(folder: Path, budget: Budget) -> None:
    """Round after round, until the time is over or there are no more latents; at least one round."""
    denoiser = _load_denoiser(folder)
    began, number = time.monotonic(), 0
    while all(shard_path(folder / "latents", size, number).exists() for size in ECHO_SIZES):
        if number > 0 and budget.progress(seconds=time.monotonic() - began, steps=number) >= 1:
            return
        for size in ECHO_SIZES:
            make_echo_shard(denoiser, folder, size, number)
        number += 1
        print(f"echoes: round {number}, {time.monotonic() - began:.0f} s", flush=True)


def _load_denoiser(folder: Path) -> Denoiser:
    device, tokenizer = pick_device(), load_tokenizer(folder / "tokenizer")
    text_encoder, unet = make_text_encoder(tokenizer).to(device), make_denoiser().to(device)
    load_modules(folder / "text.pt", {"encoder": text_encoder})
    load_modules(folder / "denoiser.pt", {"unet.average": unet})
    return Denoiser(tokenizer, text_encoder, unet)


def train_denoiser(folder: Path, budget: Budget) -> UNet2DConditionModel:
    torch.manual_seed(4)
    device = pick_device()
    unet, average = make_denoiser().to(device), make_denoiser().to(device)
    average.load_state_dict(unet.state_dict())
    optimizers = make_optimizers({"unet": unet}, muon_rate=0.015, adam_rate=1e-3)
    trainer = Trainer(
        "denoiser",
        {"unet": unet},
        optimizers,
        folder=folder,
        budget=budget,
        seed=4,
        averaged={"unet.average": average},
        average_decay=0.998,
        decay_from=0.3,
    )
    trainer.resume()
    stores = {size: LatentStore(folder / "latents", size) for size in LATENT_MIX}

    def look() -> None:
        for store in stores.values():
            store.look()

    trainer.run(_denoiser_step(folder, unet, stores), on_checkpoint=look)
    return average


def _denoiser_step(folder: Path, unet: UNet2DConditionModel, stores: dict[Size, LatentStore]) -> Step:
    tokenizer = load_tokenizer(folder / "tokenizer")
    text_encoder = make_text_encoder(tokenizer).to(unet.device)
    load_modules(folder / "text.pt", {"encoder": text_encoder})
    shares = signal_shares().to(unet.device)

    def step(random: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        size = _choose_size(random, LATENT_MIX, [size for size, store in stores.items() if len(store)])
        latents, scenes = stores[size].draw(random, LATENT_MIX[size][1])
        tokens = draw_tokens(random, tokenizer, scenes).to(unet.device)
        timesteps = draw_timesteps(random, len(scenes)).to(unet.device)
        scaled = torch.from_numpy(latents).to(unet.device).float().mul(SCALING_FACTOR)
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        loss, news = denoiser_loss(unet, text_encoder, scaled, tokens, timesteps, shares)
        return loss, len(scenes), news

    return step
