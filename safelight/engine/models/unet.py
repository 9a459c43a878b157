"""Stable Diffusion 1.x and 2.x: CLIP's text encoder, a conditional UNet (epsilon or v), a KL autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.engine.events import Pixels
from safelight.engine.models.base import Conditioning
from safelight.engine.models.loading import Config, prediction_type, read_config
from safelight.engine.models.weights import find_files, load_weights
from safelight.engine.samplers import NoiseSchedule
from safelight.errors import ModelError

Network = TypeVar("Network", UNet2DConditionModel, AutoencoderKL)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The networks of one model and what their configs say about using them."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    is_v_prediction: bool


class UNetModel:
    """An ImageModel of this family. Latents and guidance stay in float32; the networks run in their own dtype.

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
        self._uses_mask = bool(getattr(parts.text_encoder.config, "use_attention_mask", False))

    @property
    def num_prompt_tokens(self) -> int:
        """Without the start and end tokens."""
        return int(self._parts.tokenizer.model_max_length) - 2

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        return int(self._parts.tokenizer.model_max_length), int(self._parts.text_encoder.config.hidden_size)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self._num_channels, math.ceil(height / self._scale_factor), math.ceil(width / self._scale_factor)

    @torch.inference_mode()
    def encode(self, text: str) -> Conditioning:
        tokenizer, encoder = self._parts.tokenizer, self._parts.text_encoder
        tokens = tokenizer(
            text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask.to(self.device) if self._uses_mask else None
        hidden = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0][0]
        return Conditioning(hidden, self._cut(text))

    @torch.inference_mode()
    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        """With x_in = x / sqrt(sigma^2 + 1): x - sigma * epsilon, or c_skip * x + c_out * v (Karras et al. 2022, table 1
        for VP; Salimans and Ho 2022, arXiv 2202.00512, for v)."""
        sigma = sigma[:, None, None, None]
        variance = sigma.square() + 1.0
        x_in = (x * variance.rsqrt()).to(self._dtype, memory_format=torch.channels_last)
        out = self._parts.unet(x_in, timestep, encoder_hidden_states=conditioning, return_dict=False)[0].float()
        if self._parts.is_v_prediction:
            return torch.addcmul(x / variance, out, sigma * variance.rsqrt(), value=-1.0)
        return torch.addcmul(x, out, sigma, value=-1.0)

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        vae = self._parts.vae
        scaled = (latent[None] / self._latent_scale).to(vae.dtype, memory_format=torch.channels_last)
        drawn = vae.decode(scaled, return_dict=False)[0][0].float()
        top, left = (drawn.shape[1] - height) // 2, (drawn.shape[2] - width) // 2
        drawn = drawn[:, top : top + height, left : left + width]
        if not bool(torch.isfinite(drawn).all()):
            raise ArithmeticError("the autoencoder's output is not finite; serve the model with dtype float32")
        pixels = (drawn / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        picture: Pixels = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        return picture

    def _cut(self, text: str) -> str:
        """The end of the text that does not fit the window, as it was written."""
        tokens = self._parts.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = tokens["offset_mapping"]
        if len(offsets) <= self.num_prompt_tokens:
            return ""
        return text[offsets[self.num_prompt_tokens][0] :].strip()


def load_unet_model(folder: Path, schedule: NoiseSchedule, *, device: torch.device, dtype: torch.dtype) -> UNetModel:
    """The model in `folder`, whose family was checked. Raises ModelError with the remedy."""
    parts = Parts(
        tokenizer=_load_tokenizer(folder / "tokenizer"),
        text_encoder=_load_text_encoder(folder / "text_encoder", device=device, dtype=dtype),
        unet=_load_unet(folder / "unet", device=device, dtype=dtype),
        vae=_load_vae(folder / "vae", device=device, dtype=dtype),
        is_v_prediction=prediction_type(folder) == "v_prediction",
    )
    _check_fit(folder, parts)
    return UNetModel(parts, schedule)


def _check_fit(folder: Path, parts: Parts) -> None:
    unet, vae, encoder = parts.unet.config, parts.vae.config, parts.text_encoder.config
    pairs = (
        ("the unet's in_channels", unet["in_channels"], "the vae's latent_channels", vae["latent_channels"]),
        ("the unet's out_channels", unet["out_channels"], "its in_channels", unet["in_channels"]),
        (
            "the unet's cross_attention_dim",
            unet["cross_attention_dim"],
            "the encoder's hidden_size",
            encoder.hidden_size,
        ),
    )
    for name, value, other_name, other in pairs:
        if value != other:
            raise ModelError(f"{folder}: {name} is {value} but {other_name} {other}; text-to-image needs them equal")
    window, positions = parts.tokenizer.model_max_length, encoder.max_position_embeddings
    if window > positions:
        raise ModelError(f"{folder}: the tokenizer's model_max_length {window} is over the encoder's {positions}")


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read ({error}); download the model again") from error
    return tokenizer


def _load_text_encoder(folder: Path, *, device: torch.device, dtype: torch.dtype) -> CLIPTextModel:
    config = CLIPTextConfig.from_dict(read_config(folder, "CLIPTextModel"))
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    # transformers has dropped the prefix `text_model.`; files have it, older versions too.
    is_prefixed = hasattr(encoder, "text_model")

    def rename(name: str) -> str:
        bare = name.removeprefix("text_model.")
        return f"text_model.{bare}" if is_prefixed else bare

    load_weights(
        encoder,
        find_files(folder, "model"),
        dtype=dtype,
        device=device,
        rename=rename,
        is_ignored=lambda name: name.endswith("embeddings.position_ids"),
    )
    embeddings = encoder.get_submodule("text_model.embeddings" if is_prefixed else "embeddings")
    embeddings.position_ids = torch.arange(config.max_position_embeddings, device=device)[None]
    return encoder


_UNSUPPORTED = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")
"""Settings of a UNet that needs inputs this family does not have."""


def _load_unet(folder: Path, *, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    config = read_config(folder, "UNet2DConditionModel")
    for name in _UNSUPPORTED:
        if config.get(name) is not None:
            raise ModelError(f"{folder / 'config.json'}: {name} {config[name]} is not supported by this version")
    unet: UNet2DConditionModel = _on_meta(UNet2DConditionModel, folder, config)
    load_weights(unet, find_files(folder, "diffusion_pytorch_model"), dtype=dtype, device=device)
    return unet


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How files from before 2023 name the autoencoder's attention."""


def _load_vae(folder: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    vae: AutoencoderKL = _on_meta(AutoencoderKL, folder, read_config(folder, "AutoencoderKL"))
    # Text to image never encodes a picture.
    vae.encoder, vae.quant_conv = torch.nn.Module(), None  # type: ignore[assignment]

    def rename(name: str) -> str:
        if ".attentions." not in name:
            return name
        head, _, leaf = name.rpartition(".")
        path, _, last = head.rpartition(".")
        return f"{path}.{_OLD_ATTENTION.get(last, last)}.{leaf}"

    # Half precision overflows in most autoencoders of this family; bfloat16 does not.
    load_weights(
        vae,
        find_files(folder, "diffusion_pytorch_model"),
        dtype=torch.float32 if dtype is torch.float16 and vae.config["force_upcast"] else dtype,
        device=device,
        rename=rename,
        is_ignored=lambda name: name.startswith(("encoder.", "quant_conv.")),
    )
    return vae


def _on_meta(network: type[Network], folder: Path, config: Config) -> Network:
    try:
        with torch.device("meta"):
            return cast(Network, network.from_config(config))
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} describes no network that can be built ({error})") from error
