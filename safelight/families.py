"""Which kind of model a file or a folder holds, found from names and shapes alone. Loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from safelight.errors import ModelError
from safelight.headers import Header, read_header
from safelight.weight_files import check_folder, find_tokenizer

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."


class Family(StrEnum):
    """Kinds of models that can be served."""

    STABLE_DIFFUSION_1 = "stable-diffusion-1"
    STABLE_DIFFUSION_2 = "stable-diffusion-2"
    STABLE_DIFFUSION_XL = "stable-diffusion-xl"


TITLES: Mapping[Family, str] = {
    Family.STABLE_DIFFUSION_1: "Stable Diffusion 1.x",
    Family.STABLE_DIFFUSION_2: "Stable Diffusion 2.x",
    Family.STABLE_DIFFUSION_XL: "Stable Diffusion XL",
}

KNOWN_TITLES = ", ".join(TITLES.values())

TEXT_ENCODER_PREFIXES: Mapping[Family, tuple[str, ...]] = {
    Family.STABLE_DIFFUSION_1: ("cond_stage_model.transformer.",),
    Family.STABLE_DIFFUSION_2: ("cond_stage_model.model.",),
    Family.STABLE_DIFFUSION_XL: ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
"""Where a single-file checkpoint keeps its text encoders, in the order in which they are read."""

_NUM_LATENT_CHANNELS = 4

_WIDTHS = {
    768: Family.STABLE_DIFFUSION_1,
    1024: Family.STABLE_DIFFUSION_2,
    2048: Family.STABLE_DIFFUSION_XL,
}

_LORA_ENDINGS = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight", "_layer.down.weight")
_LORA_CONTEXT = re.compile(r"attn2[._](processor\.)?to_[kv](_lora)?\.(lora_A|lora_down|lora\.down|down)\.weight$")

_STRANGERS = (
    ("lora_unet_", "a LoRA; name it with --lora NAME=FILE when you deploy its model"),
    ("unet.down_blocks.", "a LoRA; name it with --lora NAME=FILE when you deploy its model"),
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL, which draws nothing by itself"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "Flux"),
    ("model.diffusion_model.double_blocks.", "Flux"),
    ("down_blocks.", "a single network in diffusers' names; name the folder that model_index.json is in"),
    ("decoder.", "an autoencoder alone"),
    ("control_model.", "a ControlNet"),
)


def family_of(header: Header) -> Family:
    """The family of a single-file checkpoint. Raises ModelError for all others, with what the file is
    where that is known."""
    names = header.shapes
    for family, prefixes in TEXT_ENCODER_PREFIXES.items():
        if all(_has(names, prefix) for prefix in (*prefixes, UNET_PREFIX)):
            _check_whole(header)
            return family
    for prefix, what in _STRANGERS:
        if _has(names, prefix):
            raise ModelError(f"{header.file} is {what}; served are whole checkpoints of {KNOWN_TITLES}")
    if _has(names, UNET_PREFIX):
        raise ModelError(f"{header.file} holds no text encoder; served are whole checkpoints of {KNOWN_TITLES}")
    raise ModelError(f"{header.file} is of no family this version knows; served are checkpoints of {KNOWN_TITLES}")


def check_model_path(path: Path) -> None:
    """Raises ModelError unless `path` is a folder in diffusers' layout, its files whole, or a checkpoint file of a
    known family that a tokenizer is to be had for."""
    try:
        path.stat()
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; name a checkpoint file or a folder that is there") from error
    except (OSError, ValueError) as error:
        # Names that are too long, folders that may not be entered, and a NUL that no path can hold.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(
            f"{path} cannot be read: {reason}; name a checkpoint file or a folder that is there"
        ) from error
    if path.is_dir():
        index = path / "model_index.json"
        if not index.is_file():
            raise ModelError(f"{path} holds no diffusers model (model_index.json is missing)")
        check_folder(path)
    else:
        family_of(read_header(path))
        find_tokenizer(path)


def context_width(path: Path) -> int | None:
    """The width of the text that the denoiser of a model listens to, which tells apart what its LoRAs fit; None where
    the model does not say. Raises ModelError where it cannot be read."""
    if path.is_file():
        return _context_width(read_header(path).shapes)
    try:
        config = json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))
        return int(config["cross_attention_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_lora(file: Path, *, model: Path | None) -> None:
    """Raises ModelError unless `file` is a LoRA, and one for the family of `model` as far as both say."""
    shapes = read_header(file).shapes
    if not any(name.endswith(_LORA_ENDINGS) for name in shapes):
        raise ModelError(f"{file} is no LoRA; models are deployed by themselves")
    listened = (shape[-1] for name, shape in shapes.items() if _LORA_CONTEXT.search(name) and len(shape) == 2)
    made_for, width = next(listened, None), None if model is None else context_width(model)
    if made_for is not None and width is not None and made_for != width:
        raise ModelError(f"{file} was made for {_by_width(made_for)}; this model is {_by_width(width)}")


def _by_width(width: int) -> str:
    family = _WIDTHS.get(width)
    return f"{TITLES[family]} (text of width {width})" if family else f"a model that listens to text of width {width}"


def _context_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    endings = ("attn2.to_k.weight",)
    widths = (shape[-1] for name, shape in shapes.items() if name.startswith(UNET_PREFIX) and name.endswith(endings))
    return next(widths, None)


def _check_whole(header: Header) -> None:
    if not _has(header.shapes, VAE_PREFIX + "decoder."):
        raise ModelError(f"{header.file} holds no autoencoder; take a version of it with the VAE baked in")
    shape = header.shapes.get(UNET_PREFIX + "input_blocks.0.0.weight", ())
    if len(shape) != 4 or shape[1] != _NUM_LATENT_CHANNELS:
        channels = shape[1] if len(shape) == 4 else "no"
        raise ModelError(
            f"{header.file} takes {channels} channels of latents instead of {_NUM_LATENT_CHANNELS}: it was trained for"
            " inpainting or for editing; take the version of it that draws from text alone"
        )


def _has(names: Mapping[str, object], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
