"""Measured times of steps and decodes, and how many rows are worth a batch by them. Pure; no clock of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

from safelight.engine.tasks import BatchKey

T = TypeVar("T")

SMOOTHING = 0.2

KNEE = 0.95
"""A batch is as large as it needs to be for this share of the best row rate: more rows only make everyone wait."""

ENOUGH = 16
"""Measurements of a number of rows before its rate counts."""


FIRST_AREA = 4 * 64 * 64
"""Of all latents in the very first step of a model: a full batch of large pictures might take longer than who makes no
progress is waited for."""

LONGEST_STEP_SECONDS = 60.0
"""No more rows than these many seconds allow: as long a cancel waits, and whoever comes."""

MAX_SHAPES = 1000
"""Each scale of a LoRA makes shapes of its own; the oldest are forgotten."""


class Costs:
    """Running means per (BatchKey, rows) for steps and per BatchKey for decodes. The first measurement warms caches
    up and gives way to the second."""

    def __init__(self) -> None:
        self._steps: dict[BatchKey, dict[int, _Measured]] = {}
        self._decodes: dict[BatchKey, _Measured] = {}

    def record_step(self, key: BatchKey, num_rows: int, seconds: float) -> None:
        self._steps.setdefault(key, {}).setdefault(num_rows, _Measured()).add(seconds)
        _forget_oldest(self._steps)

    def record_decode(self, key: BatchKey, seconds: float) -> None:
        self._decodes.setdefault(key, _Measured()).add(seconds)
        _forget_oldest(self._decodes)

    def step_seconds(self, key: BatchKey, num_rows: int) -> float | None:
        """Of a step with so many rows: measured, or on the line between the nearest measured numbers, or in
        proportion to the nearest; of a shape not yet seen, in proportion to the one of its model most like it.
        None: not yet known."""
        measured = self._steps.get(key)
        if not measured:
            like = _most_like(key, self._steps)
            return None if like is None else _area(key) / _area(like) * (self.step_seconds(like, num_rows) or 0.0)
        below = max((rows for rows in measured if rows <= num_rows), default=None)
        above = min((rows for rows in measured if rows >= num_rows), default=None)
        if below is None or above is None or below == above:
            nearest = below or above or num_rows
            return measured[nearest].value * num_rows / nearest
        part = (num_rows - below) / (above - below)
        return measured[below].value + part * (measured[above].value - measured[below].value)

    def row_seconds(self, key: BatchKey) -> float | None:
        """Of one row in the best batch measured so far; of a shape not yet seen as `step_seconds`."""
        measured = self._steps.get(key)
        if not measured:
            like = _most_like(key, self._steps)
            return None if like is None else _area(key) / _area(like) * (self.row_seconds(like) or 0.0)
        return min(each.value / rows for rows, each in measured.items())

    def most_known(self, key: BatchKey) -> int:
        """The most rows of a batch that was measured often enough; 0: none was."""
        measured = self._steps.get(key, {}).items()
        return max((num_rows for num_rows, each in measured if each.count >= ENOUGH), default=0)

    def run_seconds(self, key: BatchKey, num_images: int, *, num_rows: int, num_steps: int) -> float:
        """Of so many images drawn together and alone, with so many rows each, and their decodes. 0: not yet known."""
        step = self.step_seconds(key, num_images * num_rows) or 0.0
        return num_steps * step + num_images * self.decode_seconds(key)

    def decode_seconds(self, key: BatchKey) -> float:
        """Of one picture; of a shape not yet seen as `step_seconds`. 0 as long as none was measured."""
        if key in self._decodes:
            return self._decodes[key].value
        like = _most_like(key, self._decodes)
        return 0.0 if like is None else _area(key) / _area(like) * self._decodes[like].value

    def rows_worth(self, key: BatchKey, most: int) -> int:
        """The knee: the fewest rows with `KNEE` of the best row rate that `most` allow; `most` until one is known. Of a
        model that has drawn nothing yet no more than FIRST_AREA has, and never more than take LONGEST_STEP_SECONDS.

        Half as many and twice as many are tried where they were not measured: a rate is best only
        beside its neighbours.
        """
        row_seconds = self.row_seconds(key)
        bearable = FIRST_AREA // _area(key) if row_seconds is None else LONGEST_STEP_SECONDS / (row_seconds or 1e-9)
        most = min(most, max(1, int(bearable)))
        measured = self._steps.get(key, {}).items()
        rates = {n: n / each.least for n, each in measured if n <= most and each.count >= ENOUGH and each.least > 0}
        if not rates:
            return most
        peak = max(rates.values())
        knee = min(rows for rows, rate in rates.items() if rate >= KNEE * peak)
        # Even, and nearly is enough: guided images have two rows each, and a number that no batch can have would be
        # waited for for ever.
        half = 2 * ((knee // 2 + 1) // 2)
        if 0 < half < knee and not any(half - 1 <= rows < knee for rows in rates):
            return half
        # Those in between tell nothing: a device may take a number of rows in parts, and be slow with some.
        twice = min(2 * knee, most)
        # The same for a limit that is odd: one less is enough, where that is more than the knee.
        enough = max(twice - twice % 2, knee + 1)
        return knee if max(rates) >= enough else twice


def _forget_oldest(known: dict[BatchKey, T]) -> None:
    while len(known) > MAX_SHAPES:
        del known[next(iter(known))]


def _most_like(key: BatchKey, known: Iterable[BatchKey]) -> BatchKey | None:
    """Of the shapes of the same model the one whose pictures are nearest in size."""
    same = (each for each in known if each.model_key == key.model_key)
    return min(same, key=lambda each: abs(_area(each) - _area(key)), default=None)


def _area(key: BatchKey) -> int:
    return math.prod(key.latent_shape[1:])


class _Measured:
    """`value` follows the times; `least` is what they are without other work on the machine, which only ever adds."""

    __slots__ = ("count", "least", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.least = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count <= 2:
            self.value = self.least = seconds
            return
        self.value += SMOOTHING * (seconds - self.value)
        # It may rise slowly, should the device itself have become slower.
        self.least = min(seconds, self.least + 0.02 * (seconds - self.least))
