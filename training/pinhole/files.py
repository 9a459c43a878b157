"""Files that are there whole or not at all."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class DiskFullError(RuntimeError):
    """No room for a file; what was there before is untouched, and training can go on from it."""


CUT_SHORT = re.compile(r"\d+ requested and \d+ written|\(os error 28\)")
"""What numpy and safetensors say of a write that was cut short; they raise errors without a number."""


def is_disk_full(error: BaseException | None) -> bool:
    """Also where torch, as it closes its file, raised something else over it."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or CUT_SHORT.search(str(error)):
            return True
        error = error.__context__
    return False


@contextmanager
def saying_when_full(name: str) -> Iterator[None]:
    """Raises DiskFullError in place of what a library makes of a full disk while it writes `name`."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(f"no room left for {name}: free some space and start again, nothing is lost") from error
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Written beside, synced, renamed. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    try:
        with saying_when_full(path.name), beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError):
        beside.unlink(missing_ok=True)
        raise
