"""Which files a model's weights and tokenizer are in. Loads nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from safelight.errors import ModelError
from safelight.headers import PICKLE_SUFFIXES, pickle_message, read_header

NETWORKS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""The networks of a folder in diffusers' layout, and what their files are called."""

_PACKAGE, _PACKAGE_FILE = "open_clip", "bpe_simple_vocab_16e6.txt.gz"


def check_folder(folder: Path) -> None:
    """Raises ModelError unless every network that is in `folder` has whole safetensors files."""
    for name, stem in NETWORKS.items():
        if (folder / name).is_dir():
            for file in find_files(folder / name, stem):
                read_header(file)


def find_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one component: whole, a variant such as fp16, or shards. Raises ModelError."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    indexes = sorted(folder.glob(f"{stem}.safetensors.index*.json"))
    if indexes:
        return _shards(indexes[0])
    variants = sorted(path for path in folder.glob(f"{stem}.*.safetensors") if path.is_file())
    if variants:
        return variants[:1]
    whole_pickles = [folder / f"{name}{suffix}" for name in (stem, "pytorch_model") for suffix in PICKLE_SUFFIXES]
    for pickle in filter(Path.is_file, whole_pickles):
        raise ModelError(pickle_message(pickle, whole))
    raise ModelError(f"{folder} holds no weights: {stem}.safetensors is missing; download the model again")


def find_tokenizer(file: Path) -> Path:
    """Where the tokenizer of the checkpoint `file` is: a folder, or the packed merges of a package that has them.
    Raises ModelError, with the remedy, where there is none."""
    for folder in (file.parent / "tokenizer", file.parent):
        if (folder / "merges.txt").is_file() and (folder / "vocab.json").is_file():
            return folder
    packed = _packaged_merges()
    if packed is None:
        raise ModelError(
            f"{file} brings no tokenizer: put vocab.json and merges.txt of CLIP's tokenizer (the folder"
            " `tokenizer` of any"
            f" Stable Diffusion) into {file.parent / 'tokenizer'}, or install them with"
            " `pip install --no-deps open-clip-torch`"
        )
    return packed


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged; download it again") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside its folder; do not use this model")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index.parent / missing[0]} is missing; download the model again")
    return [index.parent / name for name in sorted(names)]


def _packaged_merges() -> Path | None:
    """The package is looked into, not imported: its own needs are not."""
    found = find_spec(_PACKAGE)
    places = [Path(place) / _PACKAGE_FILE for place in (found.submodule_search_locations or ())] if found else []
    return next((place for place in places if place.is_file()), None)
