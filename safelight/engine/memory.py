"""How many rows of a shape fit into what a device has for drawing: by what was measured, else by an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from safelight.engine.tasks import BatchKey

ROW_BYTES = 256
"""Of a denoiser whose numbers have two bytes, for each pixel of the picture that a row is to become: as long as nothing
was measured."""

DECODE_BYTES = 2048
"""Of such a decoder, for each pixel of the one picture it makes at a time."""


class MemoryPlan:
    """What `budget_bytes` hold; None: whatever is asked for. Models' weights are not in it."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._row_bytes: dict[BatchKey, float] = {}
        self._widths: dict[str, float] = {}

    @property
    def max_pixels(self) -> int | None:
        """Of one guided picture, by the estimate: more is not to be asked for."""
        if self._budget_bytes is None:
            return None
        widest = max(self._widths.values(), default=1.0)
        return int(self._budget_bytes / (widest * max(2 * ROW_BYTES, DECODE_BYTES)))

    def expect(self, model_key: str, number_bytes: int) -> None:
        """The widest numbers that the model's networks work with have so many bytes: 4 in float32."""
        self._widths[model_key] = number_bytes / 2

    def forget(self, model_key: str) -> None:
        """The model is unloaded."""
        self._widths.pop(model_key, None)
        self._row_bytes = {key: each for key, each in self._row_bytes.items() if key.model_key != model_key}

    def record(self, key: BatchKey, num_rows: int, peak_bytes: int) -> None:
        """A step of so many rows took so much at its worst."""
        self._row_bytes[key] = max(self._row_bytes.get(key, 0.0), peak_bytes / num_rows)

    def max_rows(self, key: BatchKey, num_pixels: int) -> int | None:
        """Of a batch of pictures of so many pixels; 0 where not even one can be decoded. None: no limit."""
        if self._budget_bytes is None:
            return None
        width = self._widths.get(key.model_key, 1.0)
        if num_pixels * width * DECODE_BYTES > self._budget_bytes:
            return 0
        return int(self._budget_bytes / self._row_bytes.get(key, num_pixels * width * ROW_BYTES))


@dataclass(slots=True)
class Peak:
    """The most memory at one moment of a block, beyond what was there before; None where that cannot be told."""

    num_bytes: int | None = None


@contextmanager
def watch_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the block. On a GPU torch counts as it allocates, so nobody waits for the device; on a
    CPU nobody counts."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    peak.num_bytes = torch.cuda.max_memory_allocated(device) - before
