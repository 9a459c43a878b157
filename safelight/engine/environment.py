"""Environment variables that the processes of a server must be born with. Torch-free, for whoever starts them."""

from __future__ import annotations

from collections.abc import Mapping

API_ENVIRONMENT: Mapping[str, str] = {
    # Else glibc gives every thread a heap of its own, and each grows to the most that its thread ever held.
    "MALLOC_ARENA_MAX": "1",
}

WORKER_ENVIRONMENT: Mapping[str, str] = {
    **API_ENVIRONMENT,
    # glibc maps and unmaps every large tensor anew; kept on the heap, their pages are touched once.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    # Threads that spin at a barrier take the core from the door and from each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Set before the interpreter starts: glibc and OpenMP read them once."""
