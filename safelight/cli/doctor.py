"""`doctor`: is everything here that Safelight needs?"""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import typer

from safelight.catalog_file import load_catalog, weights_finder
from safelight.cli.machine import Torch, look_at_torch, num_cores
from safelight.cli.options import ConfigOption, DataOption, JsonOption, settings_of
from safelight.cli.output import console, say_json, size
from safelight.config import Settings, StoreSettings
from safelight.errors import ConfigError, ModelError

_LITTLE_DISK_BYTES = 2_000_000_000
_NO_DISK_BYTES = 200_000_000


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_EXPECTED = ("pinhole", "stable-diffusion")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. `remedy` is empty where there is nothing to do."""

    what: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def doctor(data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at this machine and say what is missing, with the remedy. Exits with 1 when something must be mended."""
    findings = list(examine(settings_of(config, data), torch=look_at_torch))
    if as_json:
        say_json(findings)
    else:
        _say(findings)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings, *, torch: Callable[[], Torch]) -> Iterator[Finding]:
    """Every finding, in the order of what depends on what."""
    yield _python()
    yield from _torch(torch())
    yield _sqlite()
    yield _folder(settings.data)
    yield _disk(settings.data)
    if settings.store.images_url is not None:
        yield _bucket(settings.data, settings.store)
    yield from _all_weights(settings)
    yield _port(settings.server.host, settings.server.port)


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 15):
        return Finding("Python", Verdict.OK, version)
    return Finding("Python", Verdict.FAIL, version, "use Python 3.11 to 3.14")


def _torch(torch: Torch) -> Iterator[Finding]:
    if torch.failure is not None:
        remedy = "install it again: pip install --force-reinstall -c constraints.txt torch"
        yield Finding("torch", Verdict.FAIL, torch.failure, remedy)
        return
    yield Finding("torch", Verdict.OK, torch.version)
    devices = ", ".join(f"{device} ({name})" for device, name in torch.gpus)
    yield Finding("devices", Verdict.OK, devices or "cpu")
    cores = num_cores()
    if cores > 1:
        yield Finding("threads", Verdict.OK, f"{torch.num_threads} of torch on {cores} cores")
    else:
        yield Finding("threads", Verdict.WARN, "one core", "give it two: one draws while the other answers")


def _sqlite() -> Finding:
    from safelight.store.sqlite import HAS_SOUND_WAL, sqlite3

    mode = (
        "write-ahead log"
        if HAS_SOUND_WAL
        else "rollback journal: safe, and slower than a newer SQLite's write-ahead log"
    )
    return Finding("SQLite", Verdict.OK, f"{sqlite3.sqlite_version}, {mode}")


def _folder(data: Path) -> Finding:
    """Whether the data folder can be written, or made."""
    nearest = _nearest(data)
    if os.access(nearest, os.W_OK | os.X_OK) and nearest.is_dir():
        return Finding("data folder", Verdict.OK, f"{data}{'' if data.is_dir() else ', made at the first start'}")
    return Finding("data folder", Verdict.FAIL, f"{data} cannot be written", "name another one with --data")


def _disk(data: Path) -> Finding:
    free = shutil.disk_usage(_nearest(data)).free
    if free < _NO_DISK_BYTES:
        return Finding("disk", Verdict.FAIL, f"{size(free)} free", "make room, or name another folder with --data")
    if free < _LITTLE_DISK_BYTES:
        remedy = "make room, or keep runs for fewer days with store.retention_days"
        return Finding("disk", Verdict.WARN, f"{size(free)} free", remedy)
    return Finding("disk", Verdict.OK, f"{size(free)} free")


def _bucket(data: Path, settings: StoreSettings) -> Finding:
    """Whether an object can be written to it, listed, read and removed."""
    from safelight.store.store import open_images

    try:
        asyncio.run(open_images(data, settings.images_url, settings.images_endpoint).check())
    except ConfigError as error:
        found, _, remedy = error.message.partition("; ")
        return Finding("bucket", Verdict.FAIL, found, remedy)
    return Finding("bucket", Verdict.OK, f"pictures go to {settings.images_url}")


def _all_weights(settings: Settings) -> Iterator[Finding]:
    """What is here, and what clients of the predict contract ask for. Nobody needs all models there are."""
    find_weights = weights_finder(settings)
    for identifier in load_catalog(settings.catalog):
        what = f"weights of {identifier}"
        try:
            yield Finding(what, Verdict.OK, str(find_weights(identifier)))
        except ModelError as error:
            if identifier in _EXPECTED:
                yield Finding(what, Verdict.WARN, "not on this machine", error.message)


def _port(host: str, port: int) -> Finding:
    what = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                remedy = "if that is not your Safelight, take another one with --port"
                return Finding("port", Verdict.WARN, f"{what} is in use", remedy)
            remedy = "set server.host to an address of this machine, and a port above 1023"
            return Finding("port", Verdict.FAIL, f"{what}: {error.strerror}", remedy)
    return Finding("port", Verdict.OK, f"{what} is free")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    folder = folder.absolute()
    return folder if folder.exists() else _nearest(folder.parent)


def _say(findings: list[Finding]) -> None:
    colours = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}
    out = console()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        out.print(f"{finding.verdict:<4}", style=colours[finding.verdict], end="  ")
        out.print(f"{finding.what:<{width}}  {finding.detail}", markup=False, soft_wrap=True)
        if finding.remedy:
            out.print(f"{'':<{width + 8}}-> {finding.remedy}", markup=False, soft_wrap=True)
