"""CLIP's tokenizer for single-file checkpoints, which bring none: from beside the file, or from a package that has it."""

from __future__ import annotations

import gzip
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.errors import ModelError

WINDOW = 77
START, END = "<|startoftext|>", "<|endoftext|>"

_MERGES_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
"""Of merges.txt, the same file in every model that reads with CLIP's vocabulary."""

_NUM_TOKENS = 49408
_PACKAGE, _PACKAGE_FILE = "open_clip", "bpe_simple_vocab_16e6.txt.gz"


def tokenizer_for(file: Path, *, pad_token: str) -> CLIPTokenizer:
    """The tokenizer of the checkpoint `file`. Raises ModelError, with the remedy, where none is to be had."""
    for folder in (file.parent / "tokenizer", file.parent):
        if (folder / "merges.txt").is_file() and (folder / "vocab.json").is_file():
            return _from_folder(folder, pad_token)
    packed = _packaged_merges()
    if packed is None:
        raise ModelError(
            f"{file} brings no tokenizer: put vocab.json and merges.txt of CLIP's tokenizer (the folder `tokenizer` of any"
            f" Stable Diffusion) into {file.parent / 'tokenizer'}, or install them with"
            " `pip install --no-deps open-clip-torch`"
        )
    return from_merges(_read_merges(packed), pad_token=pad_token)


def from_merges(merges: list[str], *, pad_token: str) -> CLIPTokenizer:
    """The tokenizer that byte pair merges make ("a b", best first), numbered as CLIP numbers its tokens."""
    symbols = byte_symbols()
    joined = ["".join(merge.split()) for merge in merges]
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *joined, START, END]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad_token, model_max_length=WINDOW)


def byte_symbols() -> list[str]:
    """A printable stand-in for each byte, the printable ones first: the alphabet of byte-level vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + place) for place in range(0x100 - len(printable))]


def _from_folder(folder: Path, pad_token: str) -> CLIPTokenizer:
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, pad_token=pad_token, model_max_length=WINDOW
        )
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read ({error})") from error
    return tokenizer


def _packaged_merges() -> Path | None:
    """The package is looked into, not imported: its own needs are not."""
    found = find_spec(_PACKAGE)
    places = [Path(place) / _PACKAGE_FILE for place in (found.submodule_search_locations or ())] if found else []
    return next((place for place in places if place.is_file()), None)


def _read_merges(packed: Path) -> list[str]:
    try:
        lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise ModelError(f"{packed} is damaged ({error}); install the package again") from error
    merges = lines[1 : 1 + _NUM_TOKENS - 2 * 0x100 - 2]
    text = "\n".join(["#version: 0.2", *merges, ""])
    if sha256(text.encode()).hexdigest() != _MERGES_SHA256:
        raise ModelError(f"{packed} is not CLIP's vocabulary; install open-clip-torch again")
    return merges
