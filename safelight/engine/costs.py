"""Measured times of steps and decodes, and the time left that follows from them. Pure; no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from safelight.engine.tasks import BatchKey, ImageTask, LiveRun

SMOOTHING = 0.2


class Costs:
    """Running means per (BatchKey, rows) for steps and per BatchKey for decodes. The first measurement warms caches
    up and gives way to the second."""

    def __init__(self) -> None:
        self._steps: dict[BatchKey, dict[int, _Mean]] = {}
        self._decodes: dict[BatchKey, _Mean] = {}

    def record_step(self, key: BatchKey, num_rows: int, seconds: float) -> None:
        self._steps.setdefault(key, {}).setdefault(num_rows, _Mean()).add(seconds)

    def record_decode(self, key: BatchKey, seconds: float) -> None:
        self._decodes.setdefault(key, _Mean()).add(seconds)

    def step_seconds(self, key: BatchKey, num_rows: int) -> float | None:
        """Of a step with so many rows: measured, or in proportion to the nearest measured number. None: not yet known."""
        measured = self._steps.get(key)
        if not measured:
            return None
        nearest = min(measured, key=lambda rows: abs(rows - num_rows))
        return measured[nearest].value * num_rows / nearest

    def decode_seconds(self, key: BatchKey) -> float:
        """0 as long as none was measured."""
        return self._decodes[key].value if key in self._decodes else 0.0

    def seconds_left(self, tasks: Iterable[ImageTask], max_rows: Callable[[BatchKey], int]) -> dict[LiveRun, float]:
        """Until each run is finished, if nothing more arrives. `tasks` in the order of admission."""
        waiting = list(tasks)
        rows_of: dict[BatchKey, int] = {}
        for task in waiting:
            rows_of[task.key] = rows_of.get(task.key, 0) + task.num_rows
        left: dict[LiveRun, float] = {}
        work = 0.0
        for task in waiting:
            rows = max(task.num_rows, min(rows_of[task.key], max_rows(task.key)))
            step = self.step_seconds(task.key, rows)
            if step is None:
                continue
            decode = self.decode_seconds(task.key)
            work += task.num_rows * task.num_steps_left * step / rows + decode
            left[task.run] = max(left.get(task.run, 0.0), work, task.num_steps_left * step + decode)
        return left


class _Mean:
    __slots__ = ("_count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._count = 0

    def add(self, seconds: float) -> None:
        self._count += 1
        self.value = seconds if self._count <= 2 else self.value + SMOOTHING * (seconds - self.value)
