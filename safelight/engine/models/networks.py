"""Networks from components: built on the meta device from their config, then filled. Only classes named
here are built."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from safelight.engine.models.weights import Component, load_weights
from safelight.errors import ModelError

Network = TypeVar("Network", UNet2DConditionModel, AutoencoderKL)
Encoder = TypeVar("Encoder", CLIPTextModel, CLIPTextModelWithProjection)

_UNSUPPORTED = ("class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")
"""Settings of a UNet that needs inputs no family here has."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How files from before 2023 name the autoencoder's attention."""


def load_unet(
    component: Component, *, addition: str | None, device: torch.device, dtype: torch.dtype
) -> UNet2DConditionModel:
    """`addition` is the only kind of added conditioning that the family gives. Raises ModelError."""
    for name, known in {**dict.fromkeys(_UNSUPPORTED), "addition_embed_type": addition}.items():
        if component.config.get(name) != known:
            found = f"{name} {component.config.get(name)}"
            raise ModelError(f"{component.where / 'config.json'}: {found} is not supported by this version")
    unet: UNet2DConditionModel = _on_meta(UNet2DConditionModel, component)
    load_weights(unet, component, dtype=dtype, device=device)
    return unet


def load_vae(component: Component, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """Raises ModelError."""
    vae: AutoencoderKL = _on_meta(AutoencoderKL, component)
    # Half precision overflows in most autoencoders of these families; bfloat16 does not.
    dtype = torch.float32 if dtype is torch.float16 and vae.config["force_upcast"] else dtype
    load_weights(vae, component, dtype=dtype, device=device, rename=_vae_name)
    return vae


def load_text_encoder(
    component: Component, network: type[Encoder], *, device: torch.device, dtype: torch.dtype
) -> Encoder:
    """Raises ModelError."""
    config = CLIPTextConfig.from_dict(component.config)
    try:
        with torch.device("meta"):
            encoder = network(config)
    except Exception as error:
        raise _not_built(component, error) from error
    # transformers has dropped the prefix `text_model.` from one of the two; files have it, those of older versions too.
    is_prefixed = hasattr(encoder, "text_model")

    def rename(name: str) -> str | None:
        if name.endswith("embeddings.position_ids"):
            return None
        if name.startswith("text_projection."):
            return name
        bare = name.removeprefix("text_model.")
        return f"text_model.{bare}" if is_prefixed else bare

    load_weights(encoder, component, dtype=dtype, device=device, rename=rename)
    embeddings = encoder.get_submodule("text_model.embeddings" if is_prefixed else "embeddings")
    embeddings.position_ids = torch.arange(config.max_position_embeddings, device=device)[None]
    return encoder


def _vae_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    head, _, leaf = name.rpartition(".")
    path, _, last = head.rpartition(".")
    return f"{path}.{_OLD_ATTENTION.get(last, last)}.{leaf}"


def _on_meta(network: type[Network], component: Component) -> Network:
    try:
        with torch.device("meta"):
            return cast(Network, network.from_config(component.config))
    except Exception as error:
        raise _not_built(component, error) from error


def _not_built(component: Component, error: Exception) -> ModelError:
    return ModelError(f"{component.where / 'config.json'} describes no network that can be built ({error})")
