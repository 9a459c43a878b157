"""Counts what the engine does, for whoever watches it. Owner: the engine's thread; any thread may read `figures`."""

from __future__ import annotations

from bisect import bisect_left

from safelight.metrics import STEP_BUCKETS, EngineFigures


class Meter:
    """Sums since the engine was made."""

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        self._step_seconds = 0.0
        self._step_counts = [0] * (len(STEP_BUCKETS) + 1)
        self._num_rows = 0
        self._num_places = 0
        self._num_decoded = 0
        self._decode_seconds = 0.0

    def record_busy(self, seconds: float) -> None:
        """Work of any kind."""
        self._busy_seconds += seconds

    def record_step(self, seconds: float, *, num_rows: int, num_places: int) -> None:
        """A forward pass of `num_rows` where `num_places` would have fitted."""
        self._step_seconds += seconds
        self._step_counts[bisect_left(STEP_BUCKETS, seconds)] += 1
        self._num_rows += num_rows
        self._num_places += max(num_rows, num_places)

    def record_decode(self, seconds: float) -> None:
        self._num_decoded += 1
        self._decode_seconds += seconds

    def figures(self, *, num_resident_images: int) -> EngineFigures:
        """The sums as they are now; a step that ends meanwhile may be in some of them only."""
        return EngineFigures(
            num_resident_images=num_resident_images,
            busy_seconds=self._busy_seconds,
            step_seconds=self._step_seconds,
            step_counts=tuple(self._step_counts),
            num_rows=self._num_rows,
            num_places=self._num_places,
            num_decoded=self._num_decoded,
            decode_seconds=self._decode_seconds,
        )
