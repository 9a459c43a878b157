"""How this machine is: what is installed, how full the disk is, and what the doctor says when asked."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safelight.config import PREFIX, Settings
from safelight.errors import TryLater
from safelight.store.sqlite import sqlite3

PACKAGES = ("torch", "diffusers", "transformers", "fastapi", "sqlalchemy", "pillow")

_DOCTOR_SECONDS = 120.0
_OWN_PORT = "port"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    what: str
    verdict: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Disk:
    """How full the disk of the data folder is, in bytes."""

    num_free: int
    num_total: int

    @property
    def used_share(self) -> float:
        return 1 - self.num_free / self.num_total if self.num_total else 0.0


class Doctor:
    """Asks `safelight doctor`: it looks at torch, which must not be loaded here, so it is another process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asking = asyncio.Lock()
        self._installed: Mapping[str, str] | None = None

    async def installed(self) -> Mapping[str, str]:
        """Versions of what matters. They cannot change under a process, and finding them means reading many files."""
        if self._installed is None:
            self._installed = await asyncio.to_thread(_installed)
        return self._installed

    async def examine(self) -> Sequence[Finding]:
        """What the doctor says now; takes seconds. Raises TryLater."""
        async with self._asking:
            asked = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "safelight", "doctor", "--json", "--data", str(self._settings.data)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environment(),
            )
            try:
                async with asyncio.timeout(_DOCTOR_SECONDS):
                    output, _ = await asked.communicate()
            except TimeoutError as error:
                asked.kill()
                await asked.wait()
                raise TryLater("the doctor did not answer in time; ask again") from error
        return _findings(output)

    def _environment(self) -> dict[str, str]:
        """The settings that the doctor looks at, however this process got its own."""
        named = {
            f"{PREFIX}MODELS__{name.upper()}": json.dumps(str(path)) for name, path in self._settings.models.items()
        }
        if self._settings.hf_home is not None:
            named[f"{PREFIX}HF_HOME"] = json.dumps(str(self._settings.hf_home))
        return dict(os.environ) | named


def _findings(output: bytes) -> list[Finding]:
    try:
        found = json.loads(output)
    except ValueError as error:
        raise TryLater("the doctor could not be asked; try `safelight doctor` in a terminal") from error
    # The port is in use, and that is us.
    return [
        Finding(each["what"], each["verdict"], each["detail"], each.get("remedy", ""))
        for each in found
        if each["what"] != _OWN_PORT
    ]


def _installed() -> Mapping[str, str]:
    """Versions of what matters. Nothing is imported for it."""
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def disk_of(folder: Path) -> Disk:
    """The disk that holds `folder`."""
    usage = shutil.disk_usage(folder)
    return Disk(usage.free, usage.total)
