"""The autoencoder, factor 32. Its latent is given (see latents), so its two halves learn apart and at any time.

The decoder learns to draw sharp pictures from latents, the encoder to read latents from pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from training.pinhole.fast_norm import use_fast_norms
from training.pinhole.latents import LATENT_CHANNELS, MIDDLE_COLOUR, SCALING_FACTOR, latent_of
from training.pinhole.scenes import Scene, draw_scene, render

LATENT_NOISE = 0.15
"""The most noise on a latent when the decoder learns: what comes from the denoiser is never exact either."""

CERTAIN = -30.0
"""The logarithm of a variance that is none: this autoencoder has no randomness of its own."""


PREVIEW_BLOCKS, PREVIEW_SCALE, PREVIEW_CHANNELS = 3, 4, 96
"""After so many blocks of the decoder its picture is so many times smaller, in so many channels."""

STEADY_CHANNEL, STEADY_VALUE = 3, 6.0
"""A channel that is the same everywhere, so that the last norms divide by nearly the same number in every picture."""


def make_autoencoder() -> AutoencoderKL:
    """Started as something that works: the encoder averages, the decoder paints every cell in its mean colour.

    What flows past the residual blocks is the picture itself, in three channels; the blocks begin silent and learn what
    is missing. Started from noise instead, both halves spend their first thousand steps colour-blind.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
        block_out_channels=(8, 16, 48, 96, 128, 192),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=512,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        # Children before parents: blocks have the last word on their own convolutions.
        for module in reversed(list(vae.modules())):
            _start(module)
        for entrance in (vae.encoder.conv_in, vae.decoder.conv_in):
            nn.init.normal_(entrance.weight, std=0.3 * entrance.weight[0].numel() ** -0.5)
            entrance.weight[: STEADY_CHANNEL + 1] = 0
            entrance.weight[range(3), range(3), 1, 1] = 1
            entrance.bias[STEADY_CHANNEL] = STEADY_VALUE
        nn.init.dirac_(vae.post_quant_conv.weight)
        _start_exits(vae)
    return prepare(vae)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)
    elif isinstance(module, ResnetBlock2D):
        nn.init.zeros_(module.conv2.weight)
        if module.conv_shortcut is not None:
            nn.init.dirac_(module.conv_shortcut.weight)
    elif isinstance(module, Upsample2D | Downsample2D):
        # After doubling, this blur is linear interpolation; before halving, the mean of four.
        tent = torch.tensor([1.0, 2.0, 1.0]) / 4
        box = torch.tensor([1.0, 1.0, 0.0]) / 2
        line = tent if isinstance(module, Upsample2D) else box
        identity = torch.eye(module.conv.weight.size(0))[:, :, None, None]
        module.conv.weight.copy_(identity * torch.outer(line, line))


def _start_exits(vae: AutoencoderKL) -> None:
    """The last layers pass the three colours through a norm and an activation with as little bending as they allow."""
    norm, conv = vae.decoder.conv_norm_out, vae.decoder.conv_out
    nn.init.constant_(norm.weight, 0.44 * STEADY_VALUE)
    nn.init.constant_(norm.bias, 2 + STEADY_VALUE / 4)
    conv.weight.mul_(0.1)
    conv.weight[:, : STEADY_CHANNEL + 1] = 0
    conv.weight[range(3), range(3), 1, 1] = 0.92
    conv.bias.fill_(MIDDLE_COLOUR - 0.92 * 1.76)
    vae.quant_conv.weight[LATENT_CHANNELS:].zero_()
    vae.quant_conv.bias[LATENT_CHANNELS:].fill_(CERTAIN)


def prepare(vae: AutoencoderKL) -> AutoencoderKL:
    """For training: memory laid out as convolutions like it, norms with a cheap way back."""
    use_fast_norms(vae)
    return vae.to(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Batch:
    pixels: Tensor
    """[B, 3, H, W] from -1 to 1, channels last."""
    latents: Tensor
    """[B, 20, H / 32, W / 32], not scaled."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.pixels.to(device), self.latents.to(device))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to [B, 3, H, W] from -1 to 1, channels last."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_batch(random: np.random.Generator, width: int, height: int, count: int) -> Batch:
    scenes = [draw_scene(random) for _ in range(count)]
    return picture_batch(np.stack([latent_of(scene, width, height) for scene in scenes]), scenes, width, height)


def picture_batch(latents: np.ndarray, scenes: Sequence[Scene], width: int, height: int) -> Batch:
    """These latents, [B, 20, height / 32, width / 32] and not scaled, with the pictures they mean."""
    pixels = np.stack([render(scene, width, height) for scene in scenes])
    return Batch(to_tensor(pixels), torch.from_numpy(latents).float())


class Preview(nn.Module):
    """Reads a picture four times smaller from between the decoder's blocks; only training has it.

    The deep blocks decide what is drawn, the last ones how sharp. Most of the work is in the last ones, so most
    steps leave them out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, PREVIEW_CHANNELS)
        self.head = nn.Conv2d(PREVIEW_CHANNELS, 3, 3, padding=1)
        use_fast_norms(self)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(hidden)))


def _picture_loss(drawn: Tensor, pixels: Tensor) -> tuple[Tensor, float]:
    """Squares for colours, absolutes for edges, differences of neighbours for crispness; and the PSNR."""
    error = drawn.float() - pixels
    squares, absolutes = error.square().mean(), error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return squares + 0.3 * absolutes + 0.3 * edges, float(10 * torch.log10(4 / squares.detach()))


def decoder_loss(
    vae: AutoencoderKL, preview: Preview, batch: Batch, *, is_whole: bool
) -> tuple[Tensor, dict[str, float]]:
    """Of the small picture, and of the whole one too if asked."""
    decoder, device = vae.decoder, batch.pixels.device
    share = torch.rand(len(batch.latents), 1, 1, 1, device=device)
    noisy = batch.latents + LATENT_NOISE * share * torch.randn_like(batch.latents)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = vae.post_quant_conv(noisy.contiguous(memory_format=torch.channels_last))
        hidden = decoder.mid_block(decoder.conv_in(hidden))
        for block in decoder.up_blocks[:PREVIEW_BLOCKS]:
            hidden = block(hidden)
        loss, psnr = _picture_loss(preview(hidden), F.avg_pool2d(batch.pixels, PREVIEW_SCALE))
        news = {"preview psnr": psnr}
        if is_whole:
            for block in decoder.up_blocks[PREVIEW_BLOCKS:]:
                hidden = block(hidden)
            drawn = decoder.conv_out(F.silu(decoder.conv_norm_out(hidden)))
            whole, news["psnr"] = _picture_loss(drawn, batch.pixels)
            loss = loss + whole
    return loss, news


def encoder_loss(vae: AutoencoderKL, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        read = vae.quant_conv(vae.encoder(batch.pixels))[:, :LATENT_CHANNELS].float()
    loss = F.mse_loss(read, batch.latents)
    return loss, {"squared": loss.item()}
