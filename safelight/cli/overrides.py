"""`--set KEY=VALUE`: the defaults and limits of a deployment, typed and checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar, get_type_hints

from safelight.deployments import Defaults, Limits, Serving
from safelight.errors import FieldError, InvalidFields
from safelight.runs import RunParams, SamplerName, Spacing
from safelight.sampler_names import read_sampler, read_spacing

T = TypeVar("T")

EMBED_METADATA = "embed_metadata"

_LATENT_CELL = 8
"""Pixels of a side that one cell of a latent stands for."""

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What `--set` named, by where it belongs."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    serving: Mapping[str, Any] = field(default_factory=dict)
    embed_metadata: bool = True

    def apply(self, defaults: Defaults) -> tuple[Defaults, Limits]:
        """The model's own defaults with these over them, and the limits. Raises InvalidFields when they contradict."""
        chosen, limits = replace(defaults, **self.defaults), replace(Limits(), **self.limits)
        if limits.side_multiple < _LATENT_CELL or limits.side_multiple % _LATENT_CELL:
            message = f"{limits.side_multiple} is not a multiple of {_LATENT_CELL}, which the models need"
            raise InvalidFields([FieldError("side_multiple", message)])
        if wrong := limits.check(RunParams(prompt="", **asdict(chosen))):
            raise InvalidFields([FieldError(f"the default {error.field}", error.message) for error in wrong])
        return chosen, limits

    def apply_serving(self) -> Serving:
        """How the model is kept and reads prompts. Raises InvalidFields."""
        serving = Serving(**self.serving)
        if wrong := serving.check():
            raise InvalidFields(wrong)
        return serving


def known_keys() -> dict[str, type]:
    """Every name that `--set` takes, with its type."""
    known = {**get_type_hints(Defaults), **get_type_hints(Limits), **get_type_hints(Serving), EMBED_METADATA: bool}
    return {key: kind for key, kind in known.items() if key != "lora_files"}


def parse_overrides(pairs: Sequence[str]) -> Overrides:
    """Raises InvalidFields with an entry for every pair that is wrong."""
    kinds = known_keys()
    values: dict[str, Any] = {}
    wrong: list[FieldError] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            wrong.append(FieldError(pair, "is not KEY=VALUE"))
        elif key not in kinds:
            wrong.append(FieldError(key, f"no such key; known are {', '.join(sorted(kinds))}"))
        else:
            try:
                values |= _values(key, kinds[key], text)
            except ValueError as error:
                wrong.append(FieldError(key, str(error)))
    if wrong:
        raise InvalidFields(wrong)
    return Overrides(
        defaults={key: value for key, value in values.items() if key in _names(Defaults)},
        limits={key: value for key, value in values.items() if key in _names(Limits)},
        serving={key: value for key, value in values.items() if key in _names(Serving)},
        embed_metadata=values.get(EMBED_METADATA, True),
    )


def _values(key: str, kind: Any, text: str) -> dict[str, Any]:
    """What a pair sets: one key, and with a sampler like `DPM++ 2M Karras` the spacing too."""
    if kind is SamplerName:
        sampler, spacing = _named(read_sampler, text)
        return {key: sampler} | ({"spacing": spacing} if spacing else {})
    return {key: _named(read_spacing, text) if kind is Spacing else _value(kind, text)}


def _named(read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from error


def _value(kind: Any, text: str) -> Any:
    if issubclass(kind, StrEnum):
        return _choice(kind, text)
    try:
        value = _TRUTHS[text.lower()] if kind is bool else kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError(text)
        return value
    except (KeyError, ValueError) as error:
        raise ValueError(f"{text!r} is not {_KIND_NAMES[kind]}") from error


def _choice(kind: type[StrEnum], text: str) -> StrEnum:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not one of {', '.join(kind)}") from error


def _names(kind: type[Defaults | Limits | Serving]) -> frozenset[str]:
    return frozenset(each.name for each in fields(kind))
