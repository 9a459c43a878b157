"""CLIP's tokenizer: byte pairs of lower-case words, from the files that models bring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

WINDOW = 77
"""Of models that do not say."""

START, END = "<|startoftext|>", "<|endoftext|>"

_NAMED = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Merges = list[tuple[str, str]]


class Piece(NamedTuple):
    """A token of a text, and the character where it begins."""

    id: int
    start: int


class ClipTokenizer:
    """`window` is how many tokens a model takes at once, start and end among them. `named` are the special tokens by what
    they are for, `added` further ones by number."""

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Merges,
        *,
        window: int = WINDOW,
        named: Mapping[str, AddedToken | str] | None = None,
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        tokens = {**_NAMED, **(named or {})}
        unknown = str(tokens["unk_token"])
        pairs = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=unknown)
        self._tokenizer = Tokenizer(pairs)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        for token in [*(token for _, token in sorted((added or {}).items())), *tokens.values()]:
            self._tokenizer.add_tokens([AddedToken(token, special=True) if isinstance(token, str) else token])
        self.window = window
        self.start_id, self.end_id, self.pad_id = (
            self._id_of(tokens[name]) for name in ("bos_token", "eos_token", "pad_token")
        )

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def _id_of(self, token: AddedToken | str) -> int:
        found = self._tokenizer.token_to_id(str(token))
        assert found is not None
        return int(found)

    def read(self, text: str) -> list[Piece]:
        """The tokens of a text, without start and end."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [Piece(each, start) for each, (start, _) in zip(found.ids, found.offsets, strict=True)]


def open_tokenizer(folder: Path, *, pad_token: str | None = None, window: int | None = None) -> ClipTokenizer:
    """From tokenizer.json, or from vocab.json and merges.txt, with what stands beside them. What is given here goes before
    what the files say. Raises OSError, ValueError, LookupError or TypeError where they cannot be read."""
    config, whole = _read_if_there(folder / "tokenizer_config.json"), _read_if_there(folder / "tokenizer.json")
    vocabulary, merges = _byte_pairs(folder, whole)
    # Newer files list all special tokens in one place; older ones name them in another file, which goes before.
    listed = config.get("added_tokens_decoder")
    added = {int(place): _token(each) for place, each in (listed or {}).items()}
    stated = config
    if listed is None:
        stated = {**config, **_read_if_there(folder / "special_tokens_map.json")}
        own = _read_if_there(folder / "added_tokens.json")
        added |= {int(place): AddedToken(content, normalized=True) for content, place in own.items()}
        added |= {int(each["id"]): _token(each) for each in whole.get("added_tokens", [])}
    if pad_token is not None:
        stated = {**stated, "pad_token": pad_token}
    by_content = {token.content: token for token in added.values()}
    named = {name: _token(stated[name], by_content) for name in _NAMED if stated.get(name) is not None}
    window = window or int(config.get("model_max_length", WINDOW))
    return ClipTokenizer(vocabulary, merges, window=window, named=named, added=added)


def _byte_pairs(folder: Path, whole: dict[str, Any]) -> tuple[dict[str, int], Merges]:
    if whole:
        vocabulary, lines = whole["model"]["vocab"], whole["model"]["merges"]
    else:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        # The first line tells the format's version.
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    pairs = (line.split() if isinstance(line, str) else line for line in lines if line)
    return dict(vocabulary), [(left, right) for left, right in pairs]


def _token(stated: Any, known: Mapping[str, AddedToken] | None = None) -> AddedToken:
    """A special token that is stated as text, or with what is to be done around it."""
    options = dict(stated) if isinstance(stated, dict) else {"content": stated}
    for name in ("id", "__type", "special"):
        options.pop(name, None)
    token = AddedToken(**options, special=True)
    return (known or {}).get(token.content or "", token)


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
