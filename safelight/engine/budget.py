"""How much memory models may have: what the settings say, else a share of what the device or the host has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from safelight.config import EngineSettings

DEVICE_SHARE = 0.75
"""Of a GPU's memory, for weights: the rest is for what the networks make while they draw."""

HOST_SHARE = 0.5
"""Of the host's memory: as much again is what one picture at a time needs on a CPU, and what other processes have."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_bytes(settings: EngineSettings, device: str) -> int:
    """For models on `device`."""
    if settings.model_memory_mb is not None:
        return settings.model_memory_mb * 10**6
    place = torch.device(device)
    if place.type == "cuda":
        return int(DEVICE_SHARE * torch.cuda.get_device_properties(place).total_memory)
    return int(HOST_SHARE * _host_memory())


def drawing_bytes(settings: EngineSettings, device: str) -> int | None:
    """For what networks make while they draw on `device`; None: nobody knows, and it is tried."""
    if settings.drawing_memory_mb is not None:
        return settings.drawing_memory_mb * 10**6
    place = torch.device(device)
    if place.type != "cuda":
        return None
    return max(0, torch.cuda.get_device_properties(place).total_memory - device_bytes(settings, device))


def host_bytes(settings: EngineSettings, device: str) -> int:
    """For models that were moved out of a GPU; a CPU has them in host memory anyway."""
    if torch.device(device).type == "cpu":
        return 0
    if settings.host_memory_mb is not None:
        return settings.host_memory_mb * 10**6
    # Every GPU has a worker of its own.
    return int(HOST_SHARE * _host_memory()) // max(1, torch.cuda.device_count())


def _host_memory() -> int:
    """Of this machine, or of the container where that has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(file.read_text()))
    return min(found)
