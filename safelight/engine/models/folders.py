"""A folder in diffusers' layout: what is in it is checked first, and only classes that are named here
are ever built."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.engine.models.files import ModelFiles
from safelight.engine.models.noise import read_schedule
from safelight.engine.models.weights import Component, Config
from safelight.errors import ModelError
from safelight.families import KNOWN_TITLES
from safelight.weight_files import find_files

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

_ONE_ENCODER = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": _TOKENIZERS,
}

_PARTS = {
    "StableDiffusionPipeline": _ONE_ENCODER,
    "StableDiffusionXLPipeline": {
        **_ONE_ENCODER,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": _TOKENIZERS,
    },
}
"""What a folder of each kind must hold. A safety checker or a feature extractor beside them is left alone."""


def open_folder(folder: Path) -> ModelFiles:
    """The model in `folder`, not yet loaded. Raises ModelError with the remedy."""
    index = read_json(folder / "model_index.json")
    parts = _check_parts(folder, index)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule = read_schedule(scheduler, read_json(scheduler))
    encoders = [name for name in parts if name.startswith("text_encoder")]
    return ModelFiles(
        where=folder,
        unet=_component(folder, "unet", parts),
        vae=_component(folder, "vae", parts),
        text_encoders=tuple(_component(folder, name, parts) for name in encoders),
        tokenizers=tuple(load_tokenizer(folder / name) for name in parts if name.startswith("tokenizer")),
        schedule=schedule,
        has_blank_negative=len(encoders) == 2 and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Raises ModelError."""
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read ({error}); download the model again") from error
    return tokenizer


def read_json(path: Path) -> Config:
    """A JSON object. Raises ModelError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; download the model again") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object; download the model again")
    return value


def _check_parts(folder: Path, index: Config) -> dict[str, str]:
    """The class of each part, as model_index.json names them."""
    kind = index.get("_class_name")
    if kind not in _PARTS:
        raise ModelError(f"{folder} is a {kind}; this version runs {' and '.join(_PARTS)} ({KNOWN_TITLES})")
    found: dict[str, str] = {}
    for name, known in _PARTS[str(kind)].items():
        entry = index.get(name)
        class_name = entry[-1] if isinstance(entry, list) and entry else None
        if class_name not in known:
            raise ModelError(f"{folder}: the {name} is a {class_name}; this version runs {' or '.join(known)}")
        if not (folder / name).is_dir():
            raise ModelError(f"{folder / name} is missing; download the model again")
        found[name] = str(class_name)
    return found


def _component(folder: Path, name: str, parts: dict[str, str]) -> Component:
    where = folder / name
    config = read_json(where / "config.json")
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    if named not in (None, parts[name]):
        raise ModelError(f"{where / 'config.json'} is of a {named}; model_index.json says {parts[name]}")
    stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
    return Component(where, config, find_files(where, stem))
