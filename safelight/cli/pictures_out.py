"""Where pictures are written: names that say what they show and never overwrite."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from safelight.errors import ConfigError
from safelight.runs import OutputFormat

_SUFFIXES = {OutputFormat.PNG: ".png", OutputFormat.JPEG: ".jpg", OutputFormat.WEBP: ".webp"}
_FORMATS = {suffix: output_format for output_format, suffix in _SUFFIXES.items()} | {".jpeg": OutputFormat.JPEG}
_MAX_STEM_CHARS = 60


class PictureFolder:
    """Writes the pictures of one command. `out` is a folder, or the wanted name of the first picture.

    `output_format` is what was asked for, by name or by the suffix of `out`; None when neither says.
    Raises ConfigError.
    """

    def __init__(self, out: str, *, prompt: str, output_format: OutputFormat | None = None) -> None:
        path = Path(out).expanduser()
        named = None if path.is_dir() else _FORMATS.get(path.suffix.lower())
        if named is not None and output_format not in (None, named):
            raise ConfigError(
                f"{path.name} is not the name of a {output_format} file; change it, or leave out --format"
            )
        self.output_format = output_format or named
        self._folder = path if named is None else path.parent
        self._stem = None if named is None else path.stem
        self._prompt = prompt

    def prepare(self) -> None:
        """Make the folder, so that a wrong one is known before the drawing. Raises ConfigError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{self._folder} cannot be made: {reason}; name another one with --out") from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{self._folder} cannot be written into; name another one with --out")

    def write(self, picture: bytes, *, seed: int | None, output_format: OutputFormat = OutputFormat.PNG) -> Path:
        """Write under a name nothing has yet."""
        stem = self._stem or "-".join(filter(None, (slug(self._prompt), "" if seed is None else str(seed))))
        for number in count(1):
            path = self._folder / f"{stem}{'' if number == 1 else f'-{number}'}{_SUFFIXES[output_format]}"
            try:
                with path.open("xb") as file:
                    file.write(picture)
            except FileExistsError:
                continue
            return path
        raise AssertionError("count never ends")


def slug(prompt: str) -> str:
    """The beginning of a prompt as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_MAX_STEM_CHARS].strip("-") or "picture"
