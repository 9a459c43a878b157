"""Previews of runs under way: one small file per run, written anew while somebody watches. Never
durable, never missed."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{2,64}")


class PreviewFolder:
    """A folder of previews: `<run_id>.png`. The disk work is done off the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, run_id: str, data: bytes) -> None:
        """Put a preview in the place of the last one. Raises OSError."""
        assert _RUN_ID.fullmatch(run_id), "run ids are made by the server"
        await asyncio.to_thread(self._write, run_id, data)

    async def read(self, run_id: str) -> bytes | None:
        """The last preview of the run; None where there is none."""
        return await asyncio.to_thread(self._read, run_id)

    async def version(self, run_id: str) -> int | None:
        """Another number for every preview of the run; None where there is none."""
        return await asyncio.to_thread(self._version, run_id)

    async def remove(self, run_id: str) -> None:
        """The run is no longer drawn. Where the disk will not, the sweep does it later."""
        with suppress(OSError):
            await asyncio.to_thread(self._file(run_id).unlink, missing_ok=True)

    async def sweep(self, older_than_seconds: float = 600.0) -> int:
        """Remove what a worker that died has left; how many files that were."""
        return await asyncio.to_thread(self._sweep, time.time() - older_than_seconds)

    def _file(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.png"

    def _write(self, run_id: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._folder / f"{run_id}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.write_bytes(data)
            temporary.replace(self._file(run_id))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _read(self, run_id: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self._file(run_id).read_bytes()
        return None

    def _version(self, run_id: str) -> int | None:
        with suppress(FileNotFoundError):
            return self._file(run_id).stat().st_mtime_ns
        return None

    def _sweep(self, oldest_kept: float) -> int:
        num_swept = 0
        for file in self._folder.glob("*.*"):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest_kept:
                    file.unlink()
                    num_swept += 1
        return num_swept
