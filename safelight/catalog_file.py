"""The operator's own identifiers, from a TOML file, beside those of the package."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from safelight.catalog import CATALOG, COMMIT, Catalog, CatalogEntry, HubSource, find_weights
from safelight.config import Settings
from safelight.deployments import Defaults
from safelight.errors import ConfigError
from safelight.families import Family
from safelight.runs import OutputFormat, SamplerName, Spacing

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

_TEXTS = ("title", "licence", "licence_url", "variant")
_NUMBERS = ("num_bytes", "native_side")
_KEYS = {*_TEXTS, *_NUMBERS, "family", "path", "repository", "commit", "digests", "defaults"}

_NAMES: Mapping[str, type[StrEnum]] = {"sampler": SamplerName, "spacing": Spacing, "output_format": OutputFormat}


def load_catalog(file: Path | None) -> Catalog:
    """The package's entries, and those of `file` over them. Raises ConfigError that names the entry and the key."""
    if file is None:
        return CATALOG
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the catalogue {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the catalogue {file} is not TOML: {error}") from error
    own: dict[str, CatalogEntry] = {}
    for identifier, table in tree.items():
        try:
            own[identifier] = _entry(identifier, table, file.parent)
        except ValueError as error:
            raise ConfigError(f"the catalogue {file}: {identifier}: {error}") from error
    return {**CATALOG, **own}


def weights_finder(settings: Settings) -> Callable[..., Path]:
    """`find_weights` as these settings want it: from a model's name, and a `revision` of it where only that one will
    do, to its folder or file."""
    return partial(
        find_weights, folders=settings.models, hf_home=settings.hf_home, catalog=load_catalog(settings.catalog)
    )


def _entry(identifier: str, table: object, base: Path) -> CatalogEntry:
    """Raises ValueError with the rest of a sentence about the entry."""
    if not _IDENTIFIER.fullmatch(identifier) or not isinstance(table, dict):
        raise ValueError("an entry is a section [name], and its name 1 to 63 of a-z, 0-9, dot and -")
    if unknown := sorted(table.keys() - _KEYS):
        raise ValueError(f"{unknown[0]} is not known; known are {', '.join(sorted(_KEYS))}")
    texts = {key: _typed(table, key, str) for key in _TEXTS if key in table}
    numbers = {key: _typed(table, key, int) for key in _NUMBERS if key in table}
    path, repository = _typed(table, "path", str), _typed(table, "repository", str)
    if (path is None) == (repository is None):
        raise ValueError("it needs either a path or a repository")
    family = _one_of(Family, "family", table["family"]) if "family" in table else None
    known: dict[str, Any] = {"title": identifier, "licence": "not stated", "licence_url": ""}
    known |= {"num_bytes": 0, "native_side": 512} | texts | numbers
    return CatalogEntry(
        identifier=identifier,
        family=family,
        folder=None if path is None else base / Path(path).expanduser(),
        hub=() if repository is None else (HubSource(repository, _matching(table, "commit", COMMIT)),),
        digests=_digests(table.get("digests", {})),
        defaults=_defaults(table.get("defaults", {})),
        **known,
    )


def _defaults(table: object) -> Defaults:
    if not isinstance(table, dict):
        raise ValueError("defaults is not a section")
    kinds = {each.name: type(each.default) for each in fields(Defaults)}
    chosen: dict[str, Any] = {}
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"defaults.{key} is not known; known are {', '.join(kinds)}")
        if key in _NAMES:
            chosen[key] = _one_of(_NAMES[key], f"defaults.{key}", value)
        else:
            number = float(value) if kinds[key] is float and isinstance(value, int) else value
            chosen[key] = _typed({f"defaults.{key}": number}, f"defaults.{key}", kinds[key])
    return replace(Defaults(), **chosen)


def _digests(table: object) -> Mapping[str, str]:
    if not isinstance(table, dict):
        raise ValueError("digests is not a section")
    for file in table:
        _matching(table, file, _DIGEST)
    return dict(table)


def _matching(table: Mapping[str, object], key: str, pattern: re.Pattern[str]) -> str | None:
    value = table.get(key)
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise ValueError(f"{key} is {value!r}, which does not match {pattern.pattern}")
    return value


def _typed(table: Mapping[str, object], key: str, kind: type) -> Any:
    value = table.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{key} is {value!r}, not {'a text' if kind is str else 'a number'}")
    return value


def _one_of(kind: type[StrEnum], key: str, value: object) -> Any:
    if not isinstance(value, str) or value not in set(kind):
        raise ValueError(f"{key} is {value!r}, not one of {', '.join(kind)}")
    return kind(str(value))
