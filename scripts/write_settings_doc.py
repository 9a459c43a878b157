"""Writes docs/settings.md from the descriptions in safelight/config.py. A test asserts that the file is current."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from safelight.config import PREFIX, Settings

TARGET = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = f"""# Settings

Written by `python scripts/write_settings_doc.py` from `safelight/config.py`; change that, not this.

A setting comes from a TOML file (`--config FILE`, or the file that `{PREFIX}CONFIG` names), from the environment, and
from the flags of a command, each over the one before. An unknown name is an error. `safelight config` prints what is
in force.

In the environment a value is written as in TOML, and a plain text needs no quotes:

```sh
{PREFIX}SERVER__PORT=8001 {PREFIX}WEBHOOKS__ALLOWED_NETWORKS='["10.0.0.0/8"]' safelight serve
```

In a file the first part of the name is the section:

```toml
data = "/srv/safelight"

[server]
port = 8001
```
"""


def settings_doc() -> str:
    """The whole document."""
    return HEAD + "".join(_section(name, section) for name, section in _sections())


def _sections() -> Iterator[tuple[str, BaseModel]]:
    settings = Settings()
    yield "", settings
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield name, value


def _section(name: str, section: BaseModel) -> str:
    about = (type(section).__doc__ or "").strip() if name else "At the top of the file."
    title = f"[{name}]" if name else "Top"
    lines = [f"\n## {title}\n\n{about}\n\n| setting | environment | default | meaning |\n|---|---|---|---|\n"]
    defaults = section.model_dump(mode="json")
    for key, field in type(section).model_fields.items():
        if isinstance(getattr(section, key), BaseModel):
            continue
        path = f"{name}.{key}" if name else key
        variable = PREFIX + path.upper().replace(".", "__")
        lines.append(f"| `{path}` | `{variable}` | {_default(defaults[key])} | {_meaning(field)} |\n")
    return "".join(lines)


def _meaning(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not Literal:
        return str(field.description)
    return f"{field.description} One of {', '.join(f'`{each}`' for each in get_args(field.annotation))}."


def _default(value: Any) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    TARGET.write_text(settings_doc(), encoding="utf-8")
    sys.stdout.write(f"{TARGET} is current\n")
