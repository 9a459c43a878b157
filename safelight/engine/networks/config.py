"""What a network's config.json may say: each setting is read by the network, or has the one value that is built."""

from __future__ import annotations

from collections.abc import Mapping

Config = Mapping[str, object]
"""A config.json as it came, over the values of what it leaves out."""


def check_fixed(config: Config, fixed: Mapping[str, object]) -> None:
    """Raises ValueError for a setting that is there and has another value than the one that is built."""
    for name, known in fixed.items():
        if config.get(name, known) != known:
            raise ValueError(f"{name} is {config[name]}; only {known} is supported")


def read_int(config: Config, name: str) -> int:
    """Raises ValueError."""
    return _int(name, config[name])


def read_float(config: Config, name: str) -> float:
    """Raises ValueError."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value}, which is no number")
    return float(value)


def read_ints(config: Config, name: str) -> tuple[int, ...]:
    """Raises ValueError."""
    value = config[name]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is {value}, which is no list of numbers")
    return tuple(_int(name, each) for each in value)


def read_per_level(config: Config, name: str, num_levels: int) -> tuple[int, ...]:
    """One number for all levels, or one for each. Raises ValueError."""
    value = config[name]
    if not isinstance(value, (list, tuple)):
        return (_int(name, value),) * num_levels
    if len(value) != num_levels:
        raise ValueError(f"{name} has {len(value)} numbers for {num_levels} levels")
    return tuple(_int(name, each) for each in value)


def read_kinds(config: Config, name: str, known: tuple[str, ...], num_levels: int) -> tuple[str, ...]:
    """The kind of block of each level. Raises ValueError."""
    value = config[name]
    if not isinstance(value, (list, tuple)) or len(value) != num_levels or not set(value) <= set(known):
        raise ValueError(f"{name} is {value}; supported are {num_levels} of {' and '.join(known)}")
    return tuple(value)


def _int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value}, which is no whole number")
    return value
