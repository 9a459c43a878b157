"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class DiskFullError(RuntimeError):
    """No room for a file; what was there before is untouched, and training can go on from it."""


def is_disk_full(error: BaseException) -> bool:
    """Torch wraps a short write into a RuntimeError that has lost the number."""
    return getattr(error, "errno", None) == errno.ENOSPC or "file write failed" in str(error)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Written beside, synced, renamed. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(
                f"no room left for {path.name}: free some space and start again, nothing is lost"
            ) from error
        raise
