"""Which claimed delivery may go out next: a lane per host, so that a slow host holds back nobody but itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from safelight.runs import Delivery


@dataclass(slots=True)
class _Lane:
    num_running: int = 0
    waiting: deque[tuple[Delivery, float]] = field(default_factory=deque)


class Lanes:
    """Claimed deliveries that wait, by host. One owner; no I/O.

    A lane that is full asks for no more: `full_hosts` are left out of the next claim. A waiting delivery is dropped at its
    deadline: its lease ends unused and it is claimed again.
    """

    def __init__(self, *, max_per_host: int, max_total: int, max_waiting_per_host: int = 100) -> None:
        self._max_per_host = max_per_host
        self._max_total = max_total
        self._max_waiting_per_host = max_waiting_per_host
        self._lanes: dict[str, _Lane] = {}
        self._num_running = 0
        self.num_waiting = 0

    def add(self, host: str, delivery: Delivery, deadline: float) -> None:
        """Let `delivery` wait for its turn; it must have started before `deadline`."""
        self._lanes.setdefault(host, _Lane()).waiting.append((delivery, deadline))
        self.num_waiting += 1

    def full_hosts(self) -> frozenset[str]:
        """Hosts with enough to do."""
        return frozenset(host for host, lane in self._lanes.items() if len(lane.waiting) >= self._max_waiting_per_host)

    def has_room(self, host: str) -> bool:
        """Whether a lane that was full has been worked off by half."""
        return host not in self._lanes or len(self._lanes[host].waiting) <= self._max_waiting_per_host // 2

    def start_next(self, now: float) -> tuple[str, Delivery] | None:
        """Take the next delivery that may go out at `now`, hosts in turn, and count it as running. None: nothing fits."""
        if self._num_running >= self._max_total:
            return None
        for host, lane in list(self._lanes.items()):
            while lane.waiting and lane.waiting[0][1] <= now:
                self._take(lane)
            if not lane.waiting:
                self._forget_if_idle(host)
            elif lane.num_running < self._max_per_host:
                delivery = self._take(lane)
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

    def clear(self) -> Iterator[Delivery]:
        """Take out everything that waits."""
        for host, lane in list(self._lanes.items()):
            while lane.waiting:
                yield self._take(lane)
            self._forget_if_idle(host)

    def _take(self, lane: _Lane) -> Delivery:
        self.num_waiting -= 1
        return lane.waiting.popleft()[0]

    def _forget_if_idle(self, host: str) -> None:
        lane = self._lanes[host]
        if not lane.waiting and not lane.num_running:
            del self._lanes[host]
