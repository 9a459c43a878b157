"""When the processes of a server collect garbage, and what they give back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def collect_from_here() -> None:
    """This process has what it needs: what was imported stays for good, so collections, which begin now where they were
    put off, need not look through it, and come before much has gathered."""
    gc.freeze()
    gc.enable()


def give_memory_back() -> None:
    """To the system, what was let go of: glibc's allocator would keep it for this process. Others are left alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
