"""Which claimed delivery may go out next: a lane per host, so that a slow host holds back nobody but itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from safelight.runs import Delivery


@dataclass(slots=True)
class _Lane:
    num_running: int = 0
    waiting: deque[tuple[Delivery, float]] = field(default_factory=deque)


class Lanes:
    """Claimed deliveries that wait, by host. One owner; no I/O.

    A waiting delivery is dropped at its deadline or when its lane is full: its lease ends unused and it is claimed again.
    """

    def __init__(self, *, max_per_host: int, max_total: int, max_waiting_per_host: int = 1000) -> None:
        self._max_per_host = max_per_host
        self._max_total = max_total
        self._max_waiting_per_host = max_waiting_per_host
        self._lanes: dict[str, _Lane] = {}
        self._num_running = 0

    def add(self, host: str, delivery: Delivery, deadline: float) -> None:
        """Let `delivery` wait for its turn; it must have started before `deadline`."""
        lane = self._lanes.setdefault(host, _Lane())
        if len(lane.waiting) < self._max_waiting_per_host:
            lane.waiting.append((delivery, deadline))

    def start_next(self, now: float) -> tuple[str, Delivery] | None:
        """Take the next delivery that may go out at `now`, hosts in turn, and count it as running. None: nothing fits."""
        if self._num_running >= self._max_total:
            return None
        for host, lane in list(self._lanes.items()):
            while lane.waiting and lane.waiting[0][1] <= now:
                lane.waiting.popleft()
            if not lane.waiting:
                self._forget_if_idle(host)
            elif lane.num_running < self._max_per_host:
                delivery, _ = lane.waiting.popleft()
                lane.num_running += 1
                self._num_running += 1
                # To the end of the turn order.
                self._lanes[host] = self._lanes.pop(host)
                return host, delivery
        return None

    def finish(self, host: str) -> None:
        """Free the place that a delivery to `host` held."""
        self._lanes[host].num_running -= 1
        self._num_running -= 1
        self._forget_if_idle(host)

    def _forget_if_idle(self, host: str) -> None:
        lane = self._lanes[host]
        if not lane.waiting and not lane.num_running:
            del self._lanes[host]
