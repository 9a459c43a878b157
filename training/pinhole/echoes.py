"""Latents as the denoiser gives them, each with the scene it means: what the decoder has to make pictures of.

A true latent is noised until only its layout is left, then drawn back by the denoiser under a caption of its
scene. What comes out has the denoiser's own faults, wobbly contours and the strong colours of guidance, and we
know what it should have been. A decoder that has seen true latents alone draws those faults; one that has seen
echoes puts them right.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.pinhole.captions import draw_caption
from training.pinhole.denoiser import signal_shares
from training.pinhole.files import write_atomically
from training.pinhole.latents import SCALING_FACTOR, shard_path, shard_scenes
from training.pinhole.tokenizer import tokenize

EARLIEST, LATEST = 450, 950
"""Timesteps to start from: the layout survives, the details are the denoiser's."""

STEPS = 7
UNGUIDED_SHARE, STRONGEST_GUIDANCE = 0.2, 9.0
BATCH_SIZE = 32
SEED = 5


@dataclass(frozen=True, slots=True)
class Denoiser:
    """What is needed to draw a latent from words."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel

    @torch.no_grad()
    def words(self, captions: list[str]) -> Tensor:
        tokens = torch.from_numpy(tokenize(self.tokenizer, captions)).to(self.unet.device)
        return self.text_encoder(tokens).last_hidden_state


@torch.no_grad()
def echo(
    unet: UNet2DConditionModel, latents: Tensor, nothing: Tensor, words: Tensor, *, start: int, guidance: float
) -> Tensor:
    """Scaled latents [B, 20, h, w], noised to timestep `start` and drawn back in a few steps of DDIM
    (Song et al. 2021).

    `nothing` and `words` are what the text encoder says to the empty caption and to the captions, [B, 40, 192] each.
    """
    shares = signal_shares().to(latents.device)
    both_words = torch.cat([nothing, words])
    times = torch.linspace(start, 0, STEPS + 1).round().long().tolist()
    x = shares[start].sqrt() * latents + (1 - shares[start]).sqrt() * torch.randn_like(latents)
    for time, after in pairwise(times):
        without, given = unet(torch.cat([x, x]), time, both_words).sample.float().chunk(2)
        v = without + guidance * (given - without)
        clean = shares[time].sqrt() * x - (1 - shares[time]).sqrt() * v
        noise = shares[time].sqrt() * v + (1 - shares[time]).sqrt() * x
        share = shares[after] if after > 0 else torch.ones_like(shares[0])
        x = share.sqrt() * clean + (1 - share).sqrt() * noise
    return x


def _draw_guidance(random: np.random.Generator) -> float:
    """Between none and a little more than people use."""
    return 1.0 if random.random() < UNGUIDED_SHARE else float(STRONGEST_GUIDANCE ** random.random())


def make_echo_shard(denoiser: Denoiser, folder: Path, size: tuple[int, int], number: int) -> None:
    """Echoes of one shard of the true latents in `folder`, in the same order. Those of an older denoiser stay."""
    path = shard_path(folder / "echoes", size, number)
    if path.exists():
        return
    random = np.random.default_rng([SEED, *size, number])
    torch.manual_seed(int(random.integers(2**62)))
    true = torch.from_numpy(np.load(shard_path(folder / "latents", size, number))).float().mul(SCALING_FACTOR)
    captions = [draw_caption(scene, random) for scene in shard_scenes(size, number)]
    device, parts = denoiser.unet.device, []
    for first in range(0, len(true), BATCH_SIZE):
        rows = slice(first, first + BATCH_SIZE)
        start, guidance = int(random.integers(EARLIEST, LATEST)), _draw_guidance(random)
        with torch.autocast(device.type, torch.bfloat16):
            nothing, words = denoiser.words([""] * len(captions[rows])), denoiser.words(captions[rows])
            drawn = echo(denoiser.unet, true[rows].to(device), nothing, words, start=start, guidance=guidance)
        parts.append(drawn.cpu() / SCALING_FACTOR)
    echoes = torch.cat(parts).numpy().astype(np.float16)
    write_atomically(path, lambda file: np.save(file, echoes))
