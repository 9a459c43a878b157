"""Chooses the next batch: only this. Pure; never touches a tensor or a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safelight.engine.tasks import Batch, BatchKey, ImageTask

PATIENCE = 8
"""Batches an image may be left out of before it goes first."""


@dataclass(slots=True)
class _Waiting:
    task: ImageTask
    served_at: int


class Scheduler:
    """The images under way, earliest admitted first; one left out of `PATIENCE` batches leads the next, so none starves.

    A suspect image travels alone. Batches hold equal keys and at most `max_rows` rows, fewer for a key that ran out of
    memory before.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._max_rows_of: dict[BatchKey, int] = {}
        self._waiting: dict[ImageTask, _Waiting] = {}
        self._num_batches = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[ImageTask]:
        """In the order of admission."""
        return iter(self._waiting)

    def admit(self, task: ImageTask) -> None:
        self._waiting[task] = _Waiting(task, self._num_batches)

    def remove(self, task: ImageTask) -> None:
        """The image is finished or given up; unknown ones are ignored."""
        self._waiting.pop(task, None)

    def max_rows(self, key: BatchKey) -> int:
        return self._max_rows_of.get(key, self._max_rows)

    def halve_rows(self, batch: Batch) -> None:
        """Batches of this key will have at most half as many rows as this one, which did not fit into memory."""
        self._max_rows_of[batch.key] = max(1, batch.num_rows // 2)

    def choose(self) -> Batch | None:
        """The next batch; None when nothing waits."""
        if not self._waiting:
            return None
        ranked = self._ranked()
        head = ranked[0]
        tasks = [head] if head.is_suspect else self._fill(ranked)
        self._num_batches += 1
        for task in tasks:
            self._waiting[task].served_at = self._num_batches
        return Batch(head.key, tuple(sorted(tasks, key=self._rank_of_admission().__getitem__)))

    def _ranked(self) -> list[ImageTask]:
        """Suspects, then those out of patience (longest wait first), then by admission. Sorting is stable."""

        def rank(waiting: _Waiting) -> tuple[bool, int]:
            waited = self._num_batches - waiting.served_at
            return not waiting.task.is_suspect, -waited if waited >= PATIENCE else 0

        return [waiting.task for waiting in sorted(self._waiting.values(), key=rank)]

    def _fill(self, ranked: list[ImageTask]) -> list[ImageTask]:
        """The head always travels, even where its own rows are over the limit."""
        head = ranked[0]
        tasks, room = [head], self.max_rows(head.key) - head.num_rows
        for task in ranked[1:]:
            if task.key == head.key and task.num_rows <= room:
                tasks.append(task)
                room -= task.num_rows
        return tasks

    def _rank_of_admission(self) -> dict[ImageTask, int]:
        """A batch keeps one order as long as its images are the same, so that its stacked rows can be kept too."""
        return {task: rank for rank, task in enumerate(self._waiting)}
