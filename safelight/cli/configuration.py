"""`config`: the settings in force."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import SecretStr

from safelight.cli.options import ConfigOption, DataOption, JsonOption, settings_of
from safelight.cli.output import say

_MASK = str(SecretStr("any"))


def config(data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the settings in force (file, then environment, then flags), secrets left out; the text form is TOML."""
    tree = settings_of(config, data).model_dump(mode="json")
    if as_json:
        say(json.dumps(tree, indent=2))
        return
    for line in _toml(tree):
        say(line)


def _toml(tree: dict[str, object], path: str = "") -> Iterator[str]:
    """Plain values first, then sections. Unset values are comments, since TOML has no null."""
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    if path:
        yield f"\n[{path}]"
    for key, value in tree.items():
        if key not in sections:
            yield _line(_key(key), value)
    for key, value in sections.items():
        yield from _toml(value, f"{path}.{_key(key)}" if path else _key(key))


def _line(key: str, value: object) -> str:
    if value is None:
        return f"# {key} is unset"
    if value == _MASK:
        return f"# {key} is set, and a secret; keep it in the environment"
    # JSON's texts, numbers, truths and lists are TOML's as well.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else json.dumps(name)
