"""What unfinished runs go on from: one checkpoint per run, in a file named by the fence it was written under.

Losing one costs steps and nothing else, so nothing is synced: after a power cut a torn file shows in its digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{2,64}")
_DIGEST_SIZE = hashlib.sha256().digest_size


class CheckpointFolder:
    """A folder of checkpoints: `<run_id>.<fence>`, a digest and the content. The disk work is done off
    the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, run_id: str, fence: int, data: bytes) -> None:
        """Put a checkpoint in the place of all that earlier fences left, and of the last one of this.
        Raises OSError."""
        assert _RUN_ID.fullmatch(run_id), "run ids are made by the server"
        await asyncio.to_thread(self._write, run_id, fence, data)

    async def newest(self, run_id: str) -> bytes | None:
        """The checkpoint of the highest fence that is whole; None where there is none."""
        return await asyncio.to_thread(self._newest, run_id)

    async def remove(self, run_id: str) -> None:
        """The run has ended."""
        await asyncio.to_thread(self._remove, run_id)

    async def sweep(self, unfinished: Container[str], older_than_seconds: float = 600.0) -> int:
        """Remove what is of no unfinished run and no longer young; how many files that were."""
        return await asyncio.to_thread(self._sweep, unfinished, older_than_seconds)

    def _write(self, run_id: str, fence: int, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._folder / f"{run_id}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
            temporary.replace(self._folder / f"{run_id}.{fence}")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for earlier, file in self._of(run_id):
            if earlier < fence:
                file.unlink(missing_ok=True)

    def _remove(self, run_id: str) -> None:
        for _, file in self._of(run_id):
            file.unlink(missing_ok=True)

    def _newest(self, run_id: str) -> bytes | None:
        for _, file in sorted(self._of(run_id), reverse=True):
            try:
                content = file.read_bytes()
            except OSError as error:
                log.warning("a checkpoint cannot be read", extra={"run_id": run_id, "reason": str(error)})
                continue
            digest, data = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
            if hashlib.sha256(data).digest() == digest:
                return data
        return None

    def _of(self, run_id: str) -> list[tuple[int, Path]]:
        found = self._folder.glob(f"{run_id}.*")
        return [(int(file.suffix[1:]), file) for file in found if file.suffix[1:].isdecimal()]

    def _sweep(self, unfinished: Container[str], older_than_seconds: float) -> int:
        oldest_kept, num_swept = time.time() - older_than_seconds, 0
        for file in self._folder.glob("*.*"):
            with suppress(FileNotFoundError):
                is_old = file.stat().st_mtime < oldest_kept
                if is_old and (file.suffix == ".tmp" or file.name.split(".")[0] not in unfinished):
                    file.unlink()
                    num_swept += 1
        return num_swept
