"""Which claimed delivery may go out next: a lane per host, so that a slow host holds back nobody but itself.

Hosts whose last try was taken soon are proven. The others share a part of the places and wait in short lanes: however
many of them are dead, the proven ones find room. A proven host whose try takes long is proven no more, and that try
gives its place back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from safelight.runs import Delivery

MAX_PROVEN = 1000
"""Proven hosts remembered; of more, those whose last success is the oldest have to prove themselves again."""

MAX_UNPROVEN_WAITING = 4
"""Claimed for a host that is not proven, beside what is on its way to it."""


@dataclass(slots=True)
class _Lane:
    num_running: int = 0
    num_late: int = 0
    waiting: deque[tuple[Delivery, float]] = field(default_factory=deque)


class Lanes:
    """Claimed deliveries that wait, by host. One owner; no I/O.

    Of `max_total` places, those that are not proven have three quarters. A lane that is full
    asks for no more: `full_hosts` are left out of the next claim. A waiting delivery is dropped at its deadline: its
    lease ends unused and it is claimed again.
    """

    def __init__(self, *, max_per_host: int, max_total: int, max_waiting_per_host: int = 100) -> None:
        self._max_per_host = max_per_host
        self._max_total = max_total
        self._max_waiting_per_host = max_waiting_per_host
        self._max_unproven = max(1, max_total * 3 // 4)
        self._lanes: dict[str, _Lane] = {}
        self._proven: dict[str, None] = {}
        self._num_running = 0
        self._num_late = 0
        self.num_waiting = 0

    def add(self, host: str, delivery: Delivery, deadline: float) -> None:
        """Let `delivery` wait for its turn; it must have started before `deadline`."""
        self._lanes.setdefault(host, _Lane()).waiting.append((delivery, deadline))
        self.num_waiting += 1

    def full_hosts(self) -> frozenset[str]:
        """Hosts with enough to do."""
        return frozenset(host for host, lane in self._lanes.items() if len(lane.waiting) >= self._max_waiting(host))

    def proven_hosts(self) -> frozenset[str]:
        """Hosts whose last try was taken soon."""
        return frozenset(self._proven)

    @property
    def num_unproven_waiting(self) -> int:
        """Deliveries that wait for hosts which are not proven."""
        return sum(len(lane.waiting) for host, lane in self._lanes.items() if host not in self._proven)

    def has_room(self, host: str) -> bool:
        """Whether a lane that was full has been worked off by half."""
        return host not in self._lanes or len(self._lanes[host].waiting) <= self._max_waiting(host) // 2

    def start_next(self, now: float) -> tuple[str, Delivery] | None:
        """Take the next delivery that may go out at `now`, hosts in turn, and count it as running.
        None: nothing fits."""
        if self._num_running - self._num_late >= self._max_total:
            return None
        takes_unproven = self._num_unproven_running() < self._max_unproven
        for host, lane in list(self._lanes.items()):
            while lane.waiting and lane.waiting[0][1] <= now:
                self._take(lane)
            if not lane.waiting:
                self._forget_if_idle(host)
            elif lane.num_running < self._max_per_host and (takes_unproven or host in self._proven):
                delivery = self._take(lane)
                lane.num_running += 1
                self._num_running += 1
                # To the end of the turn order.
                self._lanes[host] = self._lanes.pop(host)
                return host, delivery
        return None

    def doubt(self, host: str) -> bool:
        """A try runs late; whether it gave its place back. Only those of a host that was proven do: the others never
        had the places that are kept for proven ones."""
        lane = self._lanes[host]
        gives_back = host in self._proven or lane.num_late > 0
        self._proven.pop(host, None)
        if gives_back:
            lane.num_late += 1
            self._num_late += 1
        return gives_back

    def finish(self, host: str, *, is_proven: bool, gave_back: bool = False) -> None:
        """Free the place that a delivery to `host` held, unless it `gave_back` it; whether the host is
        proven is known anew."""
        self._lanes[host].num_running -= 1
        self._num_running -= 1
        if gave_back:
            self._lanes[host].num_late -= 1
            self._num_late -= 1
        self._proven.pop(host, None)
        if is_proven:
            self._proven[host] = None
            if len(self._proven) > MAX_PROVEN:
                del self._proven[next(iter(self._proven))]
        self._forget_if_idle(host)

    def clear(self) -> Iterator[Delivery]:
        """Take out everything that waits."""
        for host, lane in list(self._lanes.items()):
            while lane.waiting:
                yield self._take(lane)
            self._forget_if_idle(host)

    def _max_waiting(self, host: str) -> int:
        return (
            self._max_waiting_per_host
            if host in self._proven
            else min(MAX_UNPROVEN_WAITING, self._max_waiting_per_host)
        )

    def _num_unproven_running(self) -> int:
        return sum(lane.num_running for host, lane in self._lanes.items() if host not in self._proven)

    def _take(self, lane: _Lane) -> Delivery:
        self.num_waiting -= 1
        return lane.waiting.popleft()[0]

    def _forget_if_idle(self, host: str) -> None:
        lane = self._lanes[host]
        if not lane.waiting and not lane.num_running:
            del self._lanes[host]
