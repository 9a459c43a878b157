"""Prompts as a text encoder takes them: cut into windows of tokens, each with its start and end, some with weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.engine.models.base import Reading

MORE, LESS = 1.1, 1.0 / 1.1
"""What a pair of round and of square brackets without a number weighs, as A1111's users know it."""

MAX_WEIGHT = 100.0
"""Of a piece, either way: a hundred brackets are no wish, and numbers without end make none."""

MAX_WINDOWS = 32
"""Of one text: they are encoded at once, and everybody else waits."""

_SIGN = re.compile(
    r"\\[()\[\]\\]|[(\[]|:\s*+([+-]?(?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++))\s*+\)|[)\]]|[^\\()\[\]:]+|.", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt and how much it weighs."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """`ids` and `mask` [n, L]; `weights` [n, L] where any is not 1. `cut` is the end of the text that
    found no place."""

    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None
    cut: str

    def weigh(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each token's output [n, L, D] times its weight, then each window brought back to the mean it
        had: A1111's way."""
        if self.weights is None:
            return hidden
        weighed = hidden.float() * self.weights.to(hidden.device)[:, :, None]
        means = hidden.float().mean(dim=(1, 2), keepdim=True) / weighed.mean(dim=(1, 2), keepdim=True)
        return (weighed * means).to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    weight: float
    span: int
    start: int


def window_of(tokenizer: CLIPTokenizer) -> int:
    """Tokens of one window, the start and end tokens among them."""
    return int(tokenizer.model_max_length)


def count_windows(tokenizer: CLIPTokenizer, text: str, reading: Reading) -> int:
    """How many windows the text wants, MAX_WINDOWS at most; one where it is cut."""
    if not reading.is_long:
        return 1
    num_tokens = len(_tokens_of(tokenizer, _spans_of(text, reading)))
    return min(MAX_WINDOWS, max(1, -(-num_tokens // (window_of(tokenizer) - 2))))


def read_windows(tokenizer: CLIPTokenizer, text: str, reading: Reading, *, num_windows: int) -> Windows:
    """The text in `num_windows` windows, the last ones empty where it is shorter, its end cut off where
    it is longer."""
    spans = _spans_of(text, reading)
    tokens = _tokens_of(tokenizer, spans)
    room = window_of(tokenizer) - 2
    read, unread = tokens[: num_windows * room], tokens[num_windows * room :]
    ids = torch.full((num_windows, room + 2), int(tokenizer.pad_token_id))
    mask, weights = torch.zeros_like(ids), torch.ones(ids.shape)
    for number in range(num_windows):
        own = read[number * room : (number + 1) * room]
        end = len(own) + 2
        ids[number, :end] = torch.tensor([tokenizer.bos_token_id, *(each.id for each in own), tokenizer.eos_token_id])
        mask[number, :end] = 1
        weights[number, 1 : end - 1] = torch.tensor([each.weight for each in own])
    is_weighed = any(each.weight != 1.0 for each in read)
    return Windows(ids, mask, weights if is_weighed else None, _end_of(spans, unread))


def parse_weights(text: str) -> list[Span]:
    r"""`(more)`, `[less]` and `(exactly:1.3)`, one inside another multiplied; `\(` is a bracket. What is opened and not
    closed holds to the end, what is closed and not opened is text. No weight is over MAX_WEIGHT."""
    pieces: list[str] = []
    opened: list[tuple[str, int]] = []
    brackets: list[_Bracket] = []
    for found in _SIGN.finditer(text):
        sign = found[0]
        if sign in "([":
            opened.append((sign, len(pieces)))
        elif found[1] is not None and opened and opened[-1][0] == "(":
            brackets.append(_Bracket(opened.pop()[1], len(pieces), _bounded(float(found[1]))))
        elif sign in ")]" and opened and opened[-1][0] == "(["[")]".index(sign)]:
            brackets.append(_Bracket(opened.pop()[1], len(pieces), MORE if sign == ")" else LESS))
        else:
            pieces.append(sign[1:] if sign[0] == "\\" and len(sign) == 2 else sign)
    while opened:
        sign, first = opened.pop()
        brackets.append(_Bracket(first, len(pieces), MORE if sign == "(" else LESS))
    return _joined(_weighed(pieces, brackets))


@dataclass(frozen=True, slots=True)
class _Bracket:
    """Weighs the pieces from `first` to before `end`."""

    first: int
    end: int
    weight: float


def _weighed(pieces: list[str], brackets: list[_Bracket]) -> Iterator[Span]:
    """The pieces, each with the product of the brackets around it. One pass; inner brackets come before outer ones."""
    beginning: dict[int, list[_Bracket]] = {}
    for bracket in reversed(brackets):
        beginning.setdefault(bracket.first, []).append(bracket)
    around: list[tuple[int, float]] = []
    for place, text in enumerate(pieces):
        while around and around[-1][0] <= place:
            around.pop()
        for bracket in beginning.get(place, ()):
            weight = bracket.weight * (around[-1][1] if around else 1.0)
            if bracket.end > place:
                around.append((bracket.end, _bounded(weight)))
        yield Span(text, around[-1][1] if around else 1.0)


def _bounded(weight: float) -> float:
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for each in spans:
        if joined and joined[-1].weight == each.weight:
            joined[-1] = Span(joined[-1].text + each.text, each.weight)
        else:
            joined.append(each)
    return joined


def _spans_of(text: str, reading: Reading) -> list[Span]:
    return parse_weights(text) if reading.is_weighted else [Span(text, 1.0)]


def _tokens_of(tokenizer: CLIPTokenizer, spans: list[Span]) -> list[_Token]:
    if not spans:
        return []
    texts = [span.text for span in spans]
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _Token(each, span.weight, number, start)
        for number, (span, ids, places) in enumerate(
            zip(spans, found["input_ids"], found["offset_mapping"], strict=True)
        )
        for each, (start, _) in zip(ids, places, strict=True)
    ]


def _end_of(spans: list[Span], unread: list[_Token]) -> str:
    """The text from the first token that was not read, as it was written but for its brackets."""
    if not unread:
        return ""
    first = unread[0]
    rest = "".join(each.text for each in spans[first.span + 1 :])
    return (spans[first.span].text[first.start :] + rest).strip()
