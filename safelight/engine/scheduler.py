"""Chooses the next batch: only this. Pure; never touches a tensor or a clock. Its time is what it is
told the device worked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from safelight.engine.costs import Costs
from safelight.engine.tasks import Batch, BatchKey, ImageTask, LiveRun

STRETCH = 16.0
"""An image is due this many times after it came what its run would take alone, or at its deadline where that is sooner.
Less is nearer to first come first served, more is nearer to shortest first; either way whoever waits
long enough is the earliest due. What is longer than usual counts as usual: long ones keep their order among themselves
while what is usual stays or grows. Where it falls, one that comes later can be due sooner."""

USUAL_SHARE = 0.1
"""How much of what is usual the latest run is."""

LONGER = 1.2
"""Whoever takes this many times as long as the first of a batch is longer company."""

SLOWING = 1.7
"""Longer company joins a batch as long as a step takes no more than so many times what it takes for the first alone."""

RECOVERY_STEPS = 256
"""Full batches that must have gone well before one that is larger than what fitted into memory is tried."""

KeyId = str | None


@dataclass(slots=True)
class _Waiting:
    task: ImageTask
    place: int
    due: float
    alone_seconds: float
    """Of its run, had it the device for itself."""


@dataclass(slots=True)
class _Room:
    """What is left of a shape's rows after it ran out of memory."""

    rows: int
    fitted: int
    num_good: int = 0
    patience: int = RECOVERY_STEPS


class Scheduler:
    """The images under way, in three orders, one inside the other:

    Whoever has the highest priority goes first. Of one priority, API keys are served by virtual time: whose weighted
    device time is least goes first, and who returns from idleness starts level with the others. Within a key the
    earliest due goes first, so that short work passes long work but for a while only. The first image of all settles
    the shape of the batch; the next ones of that shape fill it up, longer ones as far as they do not slow it much.

    A batch has the rows that are worth it by `costs`, and no more than fit into memory. A suspect image travels alone
    until it has passed a step, a deterministic one to its end.
    """

    def __init__(self, *, max_rows: int, costs: Costs | None = None) -> None:
        self._max_rows = max_rows
        self._costs = costs or Costs()
        self._waiting: dict[ImageTask, _Waiting] = {}
        self._num_admitted = 0
        self._worked = 0.0
        self._usual_seconds = 0.0
        self._served: dict[KeyId, float] = {}
        self._rooms: dict[BatchKey, _Room] = {}
        self._limits: dict[BatchKey, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[ImageTask]:
        """In the order of admission."""
        return iter(self._waiting)

    def copy(self) -> Scheduler:
        """Another one that would choose the same, with tasks of its own: for looking ahead."""
        other = Scheduler(max_rows=self._max_rows, costs=self._costs)
        other._worked, other._served = self._worked, dict(self._served)
        other._rooms = {key: replace(room) for key, room in self._rooms.items()}
        other._limits = dict(self._limits)
        for waiting in self._waiting.values():
            task = replace(waiting.task)
            other._waiting[task] = _Waiting(task, waiting.place, waiting.due, waiting.alone_seconds)
        return other

    def admit(self, task: ImageTask) -> None:
        assignment = task.run.assignment
        others = [waiting.task.run.assignment for waiting in self._waiting.values()]
        if not others:
            self._served.clear()
        if all(each.key_id != assignment.key_id for each in others):
            # Those of another priority say nothing: a lower one may have waited all the time.
            peers = (each.key_id for each in others if each.priority == assignment.priority)
            level = min((self._served[key_id] for key_id in peers), default=0.0)
            self._served[assignment.key_id] = max(self._served.get(assignment.key_id, 0.0), level)
        # Images of one run are due together, and the run counts once in what is usual.
        same = next((waiting for waiting in self._waiting.values() if waiting.task.run is task.run), None)
        due, alone_seconds = (same.due, same.alone_seconds) if same else self._admit_run(task)
        self._num_admitted += 1
        self._waiting[task] = _Waiting(task, self._num_admitted, due, alone_seconds)

    def remove(self, task: ImageTask) -> None:
        """The image is finished or given up; unknown ones are ignored."""
        self._waiting.pop(task, None)

    def charge(self, batch: Batch, seconds: float) -> None:
        """The device worked so long on the batch: every image pays for its rows."""
        self._worked += seconds
        for task in batch.tasks:
            self._bill(task.run, seconds * task.num_rows / batch.num_rows)

    def charge_alone(self, run: LiveRun, seconds: float) -> None:
        """The device worked so long on one run, outside of a batch."""
        self._worked += seconds
        self._bill(run, seconds)

    def max_rows(self, key: BatchKey) -> int:
        """The most rows of a batch of this key that are known to fit."""
        known = self._rooms[key].rows if key in self._rooms else self._max_rows
        return min(known, self._limits.get(key, self._max_rows))

    def limit_rows(self, key: BatchKey, num_rows: int) -> None:
        """No batch of this key has more rows than these from now on."""
        self._limits[key] = num_rows

    def halve_rows(self, batch: Batch) -> None:
        """The batch did not fit into memory: smaller ones from now on, and longer until a larger one is tried again."""
        before = self._rooms.get(batch.key)
        half = max(1, batch.num_rows // 2)
        if before is not None and before.fitted < batch.num_rows:
            self._rooms[batch.key] = _Room(before.fitted, before.fitted, patience=2 * before.patience)
        else:
            self._rooms[batch.key] = _Room(half, half)

    def widen_rows(self, batch: Batch) -> None:
        """The batch went well. After many full ones the memory that was missing may be there again."""
        room = self._rooms.get(batch.key)
        if room is None or batch.num_rows + 1 < room.rows:
            return
        room.num_good += 1
        if room.num_good >= room.patience:
            wider = room.rows + max(2, room.rows // 4)
            self._rooms[batch.key] = _Room(wider, room.rows, patience=room.patience)
            if wider >= self._max_rows:
                del self._rooms[batch.key]

    def choose(self) -> Batch | None:
        """The next batch; None when nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) == 1:
            # Most often, and there is nothing to be weighed.
            [task] = self._waiting
            return Batch(task.key, (task,))
        suspect = next((task for task in self._waiting if task.is_suspect), None)
        if suspect is not None:
            return Batch(suspect.key, (suspect,))
        key = self._next_shape()
        tasks = self._fill(key)
        # One order as long as its images are the same, so that a batch's stacked rows can be kept too.
        return Batch(key, tuple(sorted(tasks, key=lambda task: self._waiting[task].place)))

    def _admit_run(self, first: ImageTask) -> tuple[float, float]:
        """When the run is due whose first image this is, and what it would take alone, which becomes part of what is
        usual."""
        assignment = first.run.assignment
        alone_seconds = self._costs.run_seconds(
            first.key, len(assignment.indices), num_rows=first.num_rows, num_steps=first.num_steps_left
        )
        if alone_seconds:
            change = alone_seconds - self._usual_seconds
            self._usual_seconds += USUAL_SHARE * change if self._usual_seconds else change
        deadline = math.inf if assignment.deadline_seconds is None else assignment.deadline_seconds
        return self._worked + min(STRETCH * min(alone_seconds, self._usual_seconds), deadline), alone_seconds

    def _bill(self, run: LiveRun, seconds: float) -> None:
        assignment = run.assignment
        if assignment.key_id in self._served:
            self._served[assignment.key_id] += seconds / assignment.weight

    def _next_shape(self) -> BatchKey:
        """Of the first image of all."""
        first = min(self._waiting.values(), key=self._order_of)
        return first.task.key

    def _order_of(self, waiting: _Waiting) -> tuple[int, float, float, int]:
        assignment = waiting.task.run.assignment
        return -assignment.priority, self._served.get(assignment.key_id, 0.0), waiting.due, waiting.place

    def _fill(self, key: BatchKey) -> list[ImageTask]:
        """The first always travels, even where its own rows are over the limit; then whoever is next and fits.

        A deterministic image travels alone, and waits until it is the first.
        """
        there = sum(task.num_rows for task in self._waiting if task.key == key and not task.is_deterministic)
        room = self._costs.rows_worth(key, min(self.max_rows(key), there))
        is_crowded = sum(task.num_rows for task in self._waiting) > room
        tasks: list[ImageTask] = []
        for task in self._in_order(key):
            if task.is_deterministic:
                if not tasks:
                    return [task]
                continue
            if not tasks or (task.num_rows <= room and (is_crowded or self._suits(tasks, task))):
                tasks.append(task)
                room -= task.num_rows
            if room <= 0:
                break
        return tasks

    def _suits(self, tasks: list[ImageTask], task: ImageTask) -> bool:
        """Whether the first of the batch may be held up by one more. Who is as short as it may always join, and so
        may whoever makes a batch larger than any that is known."""
        first = tasks[0]
        num_rows = sum(each.num_rows for each in tasks) + task.num_rows
        is_longer = self._waiting[task].alone_seconds > LONGER * self._waiting[first].alone_seconds
        if not is_longer or num_rows > self._costs.most_known(task.key):
            return True
        alone, together = (self._costs.step_seconds(task.key, rows) for rows in (first.num_rows, num_rows))
        return alone is None or together is None or together <= SLOWING * alone

    def _in_order(self, key: BatchKey) -> Iterable[ImageTask]:
        """The images of a shape: of the highest priority, of the key that was served least, the one
        that is due first."""
        queues: dict[KeyId, list[_Waiting]] = {}
        for waiting in self._waiting.values():
            if waiting.task.key == key:
                queues.setdefault(waiting.task.run.assignment.key_id, []).append(waiting)
        for queue in queues.values():
            # The last is taken first.
            queue.sort(key=self._order_of, reverse=True)
        served = {key_id: self._served.get(key_id, 0.0) for key_id in queues}
        row_seconds = self._costs.row_seconds(key) or 1.0
        while queues:
            firsts = {each: queue[-1] for each, queue in queues.items()}
            key_id = min(
                firsts, key=lambda each: (-firsts[each].task.run.assignment.priority, served[each], firsts[each].due)
            )
            task = queues[key_id].pop().task
            yield task
            served[key_id] += task.num_rows * row_seconds / task.run.assignment.weight
            if not queues[key_id]:
                del queues[key_id]
