"""Options that many commands share, and the settings they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safelight.config import Settings, load_settings
from safelight.errors import ConfigError

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data folder. Unset: SAFELIGHT_DATA, else ./safelight-data."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML). Unset: SAFELIGHT_CONFIG, else none."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_of(config: Path | None, data: Path | None, **flags: object) -> Settings:
    """The settings of one command. `flags` are setting paths with `__` for the dot. Raises ConfigError."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load_settings(config, flags=dotted | {"data": data})


def existing_settings_of(config: Path | None, data: Path | None) -> Settings:
    """Like settings_of, for commands that only make sense on a data folder that is there already."""
    settings = settings_of(config, data)
    if settings.store.database_url is None and not settings.data.is_dir():
        raise ConfigError(
            f"there is no data folder {settings.data} yet: `safelight serve` or `safelight deploy` makes it,"
            " or name another one with --data"
        )
    return settings
