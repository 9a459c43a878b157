"""Where pictures are written: names that say what they show and never overwrite."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from safelight.errors import ConfigError
from safelight.runs import OutputFormat

_SUFFIXES = {OutputFormat.PNG: ".png", OutputFormat.JPEG: ".jpg", OutputFormat.WEBP: ".webp"}
_MAX_STEM_CHARS = 60


class PictureFolder:
    """Writes the pictures of one command. `out` is a folder, or the wanted name of the first picture."""

    def __init__(self, out: str, *, prompt: str, output_format: OutputFormat) -> None:
        path = Path(out).expanduser()
        self._suffix = _SUFFIXES[output_format]
        is_file_name = path.suffix.lower() in {*_SUFFIXES.values(), ".jpeg"} and not path.is_dir()
        if is_file_name and path.suffix.lower().replace(".jpeg", ".jpg") != self._suffix:
            raise ConfigError(f"{path.name} does not end in {self._suffix}; name it so, or give --format")
        self._folder = path.parent if is_file_name else path
        self._stem = path.stem if is_file_name else None
        self._prompt = prompt

    def prepare(self) -> None:
        """Make the folder, so that a wrong one is known before the drawing. Raises ConfigError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot be made: {error.strerror}; name another one with --out"
            ) from error

    def write(self, picture: bytes, *, seed: int | None) -> Path:
        """Write under a name nothing has yet."""
        stem = self._stem or "-".join(filter(None, (slug(self._prompt), "" if seed is None else str(seed))))
        for number in count(1):
            path = self._folder / f"{stem}{'' if number == 1 else f'-{number}'}{self._suffix}"
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
