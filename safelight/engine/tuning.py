"""Which dtype and how many threads are fastest on this device: measured once at start, in well under a second."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from safelight.runs import Provenance
from safelight.version import __version__

log = logging.getLogger(__name__)

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

MIN_GAIN = 1.15
"""How much faster a second thread or a narrower dtype must be: less is not worth what it takes from others."""

NUM_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Tuning:
    """How models run on a device. `num_threads` counts on a CPU only."""

    device: torch.device
    dtype: torch.dtype
    num_threads: int

    @property
    def provenance(self) -> Provenance:
        """What pictures drawn under this tuning can be told apart by."""
        return Provenance(
            safelight=__version__,
            torch=torch.__version__,
            device=_device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            num_threads=self.num_threads,
        )


def tune(*, device: str, dtype: DtypeName, num_threads: int) -> Tuning:
    """Settle what is left open (`auto`, 0 threads), and set this process to it. Thread: the one that will predict."""
    place = torch.device(device)
    if place.type == "cuda" and place.index is not None:
        # Events and pinned memory go by the thread's device, and would open the first GPU beside this one.
        torch.cuda.set_device(place)
    if place.type != "cpu":
        return Tuning(place, _torch_dtype(dtype) or _half_of(place), torch.get_num_threads())
    settled = _torch_dtype(dtype) or _fastest_dtype()
    threads = num_threads or _fastest_threads(settled)
    torch.set_num_threads(threads)
    log.info("engine on %s: %s, %d threads", place, settled, threads)
    return Tuning(place, settled, threads)


def _half_of(place: torch.device) -> torch.dtype:
    """bfloat16 where a GPU computes in it: some only pretend to, slowly."""
    has_bfloat16 = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16


@cache
def _device_name(device: torch.device) -> str:
    """With the maker's name of it: kernels differ from one to the next."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    names: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device} ({names[0] if names else platform.machine()})"


def _torch_dtype(name: DtypeName) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return known.get(name)


def _fastest_dtype() -> torch.dtype:
    """By processor time on one thread, which other work on the machine does not change."""
    torch.set_num_threads(1)
    gain = _seconds(_probe(torch.float32), time.thread_time) / _seconds(_probe(torch.bfloat16), time.thread_time)
    return torch.bfloat16 if gain >= MIN_GAIN else torch.float32


def _fastest_threads(dtype: torch.dtype) -> int:
    """Doubling from one, up to all there are, as long as it pays."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    doubled = [2**power for power in range(available.bit_length()) if 2**power < available]
    probe, best, best_seconds = _probe(dtype), 1, float("inf")
    for threads in [*doubled, available]:
        torch.set_num_threads(threads)
        seconds = _seconds(probe, time.perf_counter)
        if seconds * MIN_GAIN > best_seconds:
            break
        best, best_seconds = threads, seconds
    return best


def _probe(dtype: torch.dtype) -> Callable[[], object]:
    """A convolution, a norm and an activation of a small UNet's size."""
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(192, 192, 3, padding=1),
        torch.nn.GroupNorm(32, 192),
        torch.nn.SiLU(),
        torch.nn.Conv2d(192, 192, 1),
    )
    layers = layers.to(dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    x = torch.zeros(2, 192, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: layers(x)


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """The least of a few, after one to warm up: other work only ever adds."""
    call()
    seconds = []
    for _ in range(NUM_REPEATS):
        began = clock()
        call()
        seconds.append(clock() - began)
    return min(seconds)
