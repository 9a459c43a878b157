"""Networks from components: built on the meta device from their config, then filled. Only classes named here are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from safelight.engine.models.weights import Component, load_weights
from safelight.engine.networks.autoencoder import Autoencoder
from safelight.engine.networks.clip import TextEncoder
from safelight.engine.networks.config import Config
from safelight.engine.networks.unet import UNet
from safelight.errors import ModelError

Network = TypeVar("Network", bound=torch.nn.Module)

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How files from before 2023 name the autoencoder's attention."""


def load_unet(component: Component, *, addition: str | None, device: torch.device, dtype: torch.dtype) -> UNet:
    """`addition` is the only kind of added conditioning that the family gives. Raises ModelError."""
    if (found := component.config.get("addition_embed_type")) != addition:
        where = component.where / "config.json"
        raise ModelError(f"{where}: addition_embed_type {found} is not supported by this version")
    unet = _on_meta(UNet, component)
    load_weights(unet, component, dtype=dtype, device=device)
    return unet


def load_vae(component: Component, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """Raises ModelError."""
    vae = _on_meta(Autoencoder, component)
    # Half precision overflows in most autoencoders of these families; bfloat16 does not.
    dtype = torch.float32 if dtype is torch.float16 and vae.config["force_upcast"] else dtype
    load_weights(vae, component, dtype=dtype, device=device, rename=_vae_name)
    return vae


def load_text_encoder(
    component: Component, *, has_summary: bool, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    """Raises ModelError."""
    encoder = _on_meta(lambda config: TextEncoder(config, has_summary=has_summary), component)
    load_weights(encoder, component, dtype=dtype, device=device, rename=_text_encoder_name)
    return encoder


def _text_encoder_name(name: str) -> str | None:
    return None if name.endswith("embeddings.position_ids") else name.removeprefix("text_model.")


def _vae_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    head, _, leaf = name.rpartition(".")
    path, _, last = head.rpartition(".")
    return f"{path}.{_OLD_ATTENTION.get(last, last)}.{leaf}"


def _on_meta(build: Callable[[Config], Network], component: Component) -> Network:
    try:
        with torch.device("meta"), _Unfilled():
            return build(component.config)
    except Exception as error:
        where = component.where / "config.json"
        raise ModelError(f"{where} describes no network that can be built ({error})") from error


class _Unfilled(TorchFunctionMode):
    """Layers that are made within draw no first weights: on the meta device that would import torch's compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_drawing = getattr(func, "__module__", None) == torch.nn.init.__name__
        return None if is_drawing else func(*args, **(kwargs or {}))
