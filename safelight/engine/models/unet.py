"""Stable Diffusion 1.x, 2.x and XL: CLIP's text encoders, a conditional UNet (epsilon or v), a KL autoencoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from safelight.engine.beginnings import Mask
from safelight.engine.events import Pixels
from safelight.engine.models.adapters import Adapters
from safelight.engine.models.base import Conditioning, PictureLatent, Reading
from safelight.engine.models.files import ModelFiles
from safelight.engine.models.forwards import Compiler, Faster, Forward, backend_name
from safelight.engine.models.networks import load_text_encoder, load_unet, load_vae
from safelight.engine.models.text import ClipPair, ClipPrompt, PromptEncoder
from safelight.engine.samplers import NoiseSchedule
from safelight.errors import ModelError
from safelight.runs import LoraUse


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The networks of one model, and what its denoiser predicts."""

    prompts: PromptEncoder
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    is_v_prediction: bool


class UNetModel:
    """An ImageModel of these families. Latents and guidance stay in float32; the networks run in their own dtype.

    A picture whose sides are no multiple of the autoencoder's factor is drawn on the next multiple and cropped evenly
    on both sides, so that what the model puts in the middle stays there.
    """

    def __init__(self, parts: Parts, schedule: NoiseSchedule) -> None:
        self._parts = parts
        self.schedule = schedule
        self.device = torch.device(parts.unet.device)
        self._dtype: torch.dtype = parts.unet.dtype
        self._scale_factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
        self._num_channels = int(parts.unet.config["in_channels"])
        self._latent_scale = float(parts.vae.config["scaling_factor"])
        self._unet: Forward = parts.unet
        self._decode: Forward = parts.vae.decode
        encoders = zip(("text_encoder", "text_encoder_2"), parts.prompts.networks, strict=False)
        self._adapters = Adapters({"unet": parts.unet, **dict(encoders)})
        self._loras: tuple[LoraUse, ...] = ()

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        return *self._parts.prompts.networks, self._parts.unet, self._parts.vae, *self._adapters.networks

    def register_loras(self, paths: Mapping[str, Path]) -> None:
        self._adapters.register(paths)

    def adapted(self, loras: tuple[LoraUse, ...]) -> UNetModel:
        for use in loras:
            self._adapters.load(use.name)
        view = copy.copy(self)
        view._loras = loras
        return view

    def compiled(self, compiler: Compiler) -> UNetModel:
        """The same model, sharing its weights, with networks that run faster where that can be. Thread: any, as long
        as no LoRA is read."""
        unet, vae = self._parts.unet, self._parts.vae
        side = unet.config["sample_size"] or 64
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        x = torch.zeros(1, self._num_channels, height, width, dtype=self._dtype, device=self.device)
        hidden = torch.zeros(1, *self.conditioning_shape, dtype=self._dtype, device=self.device)
        sides = {"height": height * self._scale_factor, "width": width * self._scale_factor}
        inputs = self._parts.prompts.denoiser_inputs(hidden, **sides)
        view = copy.copy(self)
        view._unet = compiler.unet(unet, x, torch.zeros(1, device=self.device), **inputs)
        view._decode = compiler.decoder(vae, x.to(vae.dtype))
        return view

    def backend_of(self, latent_shape: tuple[int, int, int], num_windows: int = 1) -> str:
        denoiser = "torch" if self._loras else backend_name(self._unet, latent_shape, num_windows)
        decoder = backend_name(self._decode, latent_shape)
        return denoiser if denoiser == decoder else f"{denoiser} (denoiser), {decoder} (decoder)"

    def release(self) -> bool:
        return isinstance(self._unet, Faster) and self._unet.release()

    @property
    def num_prompt_tokens(self) -> int:
        """Without the start and end tokens."""
        return self._parts.prompts.num_prompt_tokens

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        return self._parts.prompts.conditioning_shape

    def set_reading(self, reading: Reading) -> None:
        self._parts.prompts.reading = reading

    def count_windows(self, text: str) -> int:
        return self._parts.prompts.count_windows(text)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self._num_channels, math.ceil(height / self._scale_factor), math.ceil(width / self._scale_factor)

    @torch.inference_mode()
    def encode(self, text: str, *, is_negative: bool = False, num_windows: int = 1) -> Conditioning:
        with self._adapters.active(self._loras):
            return self._parts.prompts.encode(text, is_negative=is_negative, num_windows=num_windows)

    @torch.inference_mode()
    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        """With x_in = x / sqrt(sigma^2 + 1): x - sigma * epsilon, or c_skip * x + c_out * v (Karras et al. 2022, table
        1 for VP; Salimans and Ho 2022, arXiv 2202.00512, for v)."""
        height, width = (side * self._scale_factor for side in x.shape[-2:])
        inputs = self._parts.prompts.denoiser_inputs(conditioning, height=height, width=width)
        sigma = sigma[:, None, None, None]
        variance = sigma.square() + 1.0
        x_in = (x * variance.rsqrt()).to(self._dtype, memory_format=torch.channels_last)
        unet = self._parts.unet if self._loras else self._unet
        with self._adapters.active(self._loras):
            out = unet(x_in, timestep, return_dict=False, **inputs)[0].float()
        if self._parts.is_v_prediction:
            return torch.addcmul(x / variance, out, sigma * variance.rsqrt(), value=-1.0)
        return torch.addcmul(x, out, sigma, value=-1.0)

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        vae = self._parts.vae
        scaled = (latent[None] / self._latent_scale).to(vae.dtype, memory_format=torch.channels_last)
        drawn = self._decode(scaled, return_dict=False)[0][0].float()
        top, left = (drawn.shape[1] - height) // 2, (drawn.shape[2] - width) // 2
        drawn = drawn[:, top : top + height, left : left + width]
        if not bool(torch.isfinite(drawn).all()):
            raise ArithmeticError("the autoencoder's output is not finite; serve the model with dtype float32")
        pixels = (drawn / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        picture: Pixels = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        return picture

    @torch.inference_mode()
    def encode_picture(self, pixels: Pixels) -> PictureLatent:
        vae = self._parts.vae
        scaled = torch.from_numpy(self._padded(pixels)).to(self.device).permute(2, 0, 1).float() / 127.5 - 1.0
        meant = vae.encode(scaled[None].to(vae.dtype, memory_format=torch.channels_last)).latent_dist
        mean, std = meant.mean[0].float() * self._latent_scale, meant.std[0].float() * self._latent_scale
        return PictureLatent(mean, std)

    def encode_mask(self, mask: Mask) -> torch.Tensor:
        cells = self._padded(mask)[:: self._scale_factor, :: self._scale_factor]
        return torch.from_numpy(cells.astype(np.float32))[None].to(self.device)

    def _padded(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Grown evenly to the next multiple of the autoencoder's factor, by repeating its border."""
        grown = [(-side) % self._scale_factor for side in picture.shape[:2]]
        widths = [(grow // 2, grow - grow // 2) for grow in grown]
        return np.pad(picture, [*widths, *[(0, 0)] * (picture.ndim - 2)], mode="edge")


def build_model(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> UNetModel:
    """Load the weights of a model. Raises ModelError with the remedy."""
    parts = Parts(
        prompts=_load_prompts(files, device=device, dtype=dtype),
        unet=load_unet(files.unet, addition="text_time" if files.is_xl else None, device=device, dtype=dtype),
        vae=load_vae(files.vae, device=device, dtype=dtype),
        is_v_prediction=files.schedule.is_v_prediction,
    )
    _check_fit(files, parts)
    return UNetModel(parts, files.schedule)


def _load_prompts(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> PromptEncoder:
    first = load_text_encoder(files.text_encoders[0], CLIPTextModel, device=device, dtype=dtype)
    if not files.is_xl:
        _check_windows(files, (first,))
        return ClipPrompt(files.tokenizers[0], first)
    second = load_text_encoder(files.text_encoders[1], CLIPTextModelWithProjection, device=device, dtype=dtype)
    _check_windows(files, (first, second))
    one, other = files.tokenizers
    return ClipPair((one, other), (first, second), has_blank_negative=files.has_blank_negative)


def _check_fit(files: ModelFiles, parts: Parts) -> None:
    unet, vae = parts.unet.config, parts.vae.config
    width = parts.prompts.conditioning_shape[1]
    pairs = (
        ("the unet's in_channels", unet["in_channels"], "the vae's latent_channels", vae["latent_channels"]),
        ("the unet's out_channels", unet["out_channels"], "its in_channels", unet["in_channels"]),
        ("the unet's cross_attention_dim", unet["cross_attention_dim"], "the text encoder's width", width),
    )
    for name, value, other_name, other in pairs:
        if value != other:
            raise ModelError(
                f"{files.where}: {name} is {value} but {other_name} {other}; text-to-image needs them equal"
            )


def _check_windows(files: ModelFiles, encoders: tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]) -> None:
    for tokenizer, encoder in zip(files.tokenizers, encoders, strict=True):
        window, positions = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if window > positions:
            raise ModelError(
                f"{files.where}: the tokenizer's model_max_length {window} is over the encoder's {positions}"
            )
        num_tokens, num_known = len(tokenizer), encoder.config.vocab_size
        if num_tokens > num_known:
            raise ModelError(
                f"{files.where}: the tokenizer knows {num_tokens} tokens, the text encoder only {num_known};"
                " they belong to different models"
            )
