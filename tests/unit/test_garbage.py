"""Memory that a process of the server has let go of."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from safelight.garbage import give_memory_back


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another allocator than glibc's")
def test_holes_between_what_is_still_held_are_given_back() -> None:
    held = [bytes(3000) for _ in range(30_000)]
    held = held[::100]
    before = resident_bytes()
    give_memory_back()
    assert before - resident_bytes() > 40_000_000
    assert len(held) == 300
