"""The denoiser: a small UNet that predicts v (Salimans and Ho 2022) on Stable Diffusion's noise schedule."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.pinhole.captions import draw_caption
from training.pinhole.fast_norm import use_fast_norms
from training.pinhole.latents import LATENT_CHANNELS
from training.pinhole.scenes import Scene
from training.pinhole.text_encoder import WIDTH
from training.pinhole.tokenizer import tokenize

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
CAPTION_DROPOUT = 0.1


def make_denoiser() -> UNet2DConditionModel:
    """No attention at the highest resolution: there it costs most and binds least."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160, 176),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)
    return prepare(unet)


def prepare(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """For training: norms and attention whose way back is cheap on a CPU."""
    use_fast_norms(unet)
    unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)


def signal_shares() -> Tensor:
    """How much of the variance is still picture at each timestep: Stable Diffusion's scaled-linear schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def draw_timesteps(random: np.random.Generator, count: int) -> Tensor:
    """One in each of `count` equal strata, so that no batch is all noise or all picture."""
    shares = (np.arange(count) + random.random(count)) / count
    times = (shares * NUM_TIMESTEPS).astype(np.int64).clip(0, NUM_TIMESTEPS - 1)
    return torch.from_numpy(random.permutation(times))


def draw_tokens(random: np.random.Generator, tokenizer: CLIPTokenizer, scenes: list[Scene]) -> Tensor:
    captions = ["" if random.random() < CAPTION_DROPOUT else draw_caption(scene, random) for scene in scenes]
    return torch.from_numpy(tokenize(tokenizer, captions))


def denoiser_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: Tensor,
    tokens: Tensor,
    timesteps: Tensor,
    shares: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of v; latents are scaled to about unit spread."""
    alpha = shares[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - shares[timesteps]).sqrt()[:, None, None, None]
    noise = torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        with torch.no_grad():
            words = text_encoder(tokens).last_hidden_state
        predicted = unet(alpha * latents + sigma * noise, timesteps, words).sample.float()
    error = (predicted - (alpha * noise - sigma * latents)).square().mean((1, 2, 3))
    is_late = timesteps >= NUM_TIMESTEPS // 2
    loss = error.mean()
    return loss, {
        "v": loss.item(),
        "v noisy half": error[is_late].mean().item(),
        "v clear half": error[~is_late].mean().item(),
    }
