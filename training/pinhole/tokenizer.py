"""A byte-pair tokenizer in CLIP's format, trained on the caption grammar; bytes are the fallback for
everything else."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from training.pinhole.captions import FILLERS, draw_caption
from training.pinhole.scenes import draw_scene

MAX_TOKENS = 40
"""Begin and end included; longer prompts are cut."""

NUM_MERGES = 600
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte, as in GPT-2's and CLIP's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + k) for k, b in enumerate(others)}
    return [letters[b] for b in [*printable, *others]]


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, joined one after another (Sennrich et al. 2016); ties by alphabet."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: _join(pieces, best) for word, pieces in spelled.items()}
    return merges


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def count_words(num_captions: int = 20000) -> Counter[str]:
    random = np.random.default_rng(0)
    words: Counter[str] = Counter()
    for _ in range(num_captions):
        words.update(re.findall(r"[a-z]+", draw_caption(draw_scene(random), random)))
    known = {word: count for word, count in words.items() if count >= 8}
    return Counter(known) + Counter(" ".join(FILLERS).split())


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt and loads them as everybody else will."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(count_words(), NUM_MERGES)
    letters = byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {entry: k for k, entry in enumerate(dict.fromkeys(entries))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> np.ndarray:
    """int64 [B, 40], padded and cut as the pipeline does."""
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True)
    return np.asarray(tokens["input_ids"], dtype=np.int64)
