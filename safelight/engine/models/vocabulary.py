"""CLIP's tokenizer for single-file checkpoints, which bring none: from beside the file, or from a
package that has it."""

from __future__ import annotations

import gzip
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.errors import ModelError
from safelight.weight_files import find_tokenizer

WINDOW = 77
START, END = "<|startoftext|>", "<|endoftext|>"

_MERGES_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
"""Of merges.txt, the same file in every model that reads with CLIP's vocabulary."""

_NUM_TOKENS = 49408


def tokenizer_for(file: Path, *, pad_token: str) -> CLIPTokenizer:
    """The tokenizer of the checkpoint `file`. Raises ModelError, with the remedy, where none is to be had."""
    found = find_tokenizer(file)
    return _from_folder(found, pad_token) if found.is_dir() else from_merges(_read_merges(found), pad_token=pad_token)


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
