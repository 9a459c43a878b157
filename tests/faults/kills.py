"""Promises 1, 2 and 5: workers and API killed and stalled while clients ask and a bad endpoint is told."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from .crew import LEASE_SECONDS, Crew, furnish, in_child, settings_for
from .figures import Figure, check
from .judge import judge, settle
from .traffic import Endpoint, Ledger, start_clients

API_SHARE = 0.2
STALL_SHARE = 0.03
SETTLE_SECONDS = 120.0
LOST_LINE = "the claim was lost"


@dataclass
class Killer:
    """Kills in step with the runs that are accepted; now and then it stalls a worker for longer than its lease."""

    crew: Crew
    num_kills: int = 0
    num_stalls: int = 0
    stalled: tuple[str, float] | None = None

    def go_on(self, ledger: Ledger, clients: BaseProcess, *, num_kills: int, num_lines: int) -> None:
        """Until that many kills were done and the clients have all they asked for."""
        for kill in range(num_kills):
            due = (kill + 1) * num_lines // (num_kills + 1)
            while len(ledger) < due and clients.is_alive():
                self._tend()
                time.sleep(0.01)
            self._strike()
        while clients.is_alive():
            self._tend()
            time.sleep(0.05)
        assert clients.exitcode == 0, "a client was given an answer it cannot accept"

    def wake(self) -> None:
        if self.stalled is not None:
            os.kill(self.crew.children[self.stalled[0]], signal.SIGCONT)
            self.stalled = None

    def _strike(self) -> None:
        free = [name for name in self.crew.workers if self.stalled is None or name != self.stalled[0]]
        if self.stalled is None and random.random() < STALL_SHARE:
            victim = random.choice(free)
            os.kill(self.crew.children[victim], signal.SIGSTOP)
            self.stalled = victim, time.monotonic() + 2 * LEASE_SECONDS
            self.num_stalls += 1
        victim = "api" if random.random() < API_SHARE or len(free) < 2 else random.choice(free)
        if self.stalled is not None and victim == self.stalled[0]:
            victim = "api"
        # At any moment of its life, its first ones included.
        time.sleep(random.random() * 0.05)
        self.crew.kill(victim)
        self.num_kills += 1
        self.crew.start(victim)

    def _tend(self) -> None:
        if self.stalled is not None and time.monotonic() > self.stalled[1]:
            self.wake()
        self.crew.check()


def kill_loop(
    folder: Path, name: str, url: str | None, *, num_runs: int, num_kills: int, num_clients: int, num_keys: int
) -> list[Figure]:
    """The figures of promises 1, 2 and 5 on one database."""
    settings = settings_for(folder, url)
    key = in_child(furnish, settings)
    accepted, arrived = Ledger(folder / "accepted"), Ledger(folder / "arrived")
    endpoint = Endpoint(arrived)
    begun = time.monotonic()
    with Crew(settings, folder, num_workers=3).working() as crew:
        killer = Killer(crew)
        lanes = start_clients(
            crew, key, accepted, lambda lane: list(range(lane, num_runs, 16)), num_clients=16, webhook=endpoint.url
        )
        killer.go_on(accepted, lanes, num_kills=num_kills, num_lines=num_runs)
        killer.wake()
        same = Ledger(folder / "same")
        shuffled = [random.sample(range(num_runs, num_runs + num_keys), num_keys) for _ in range(num_clients)]
        clients = start_clients(crew, key, same, shuffled.__getitem__, num_clients=num_clients, webhook=endpoint.url)
        num_same_kills = max(2, num_kills // 20)
        killer.go_on(same, clients, num_kills=num_same_kills, num_lines=num_clients * num_keys)
        killer.wake()
        is_settled = in_child(settle, settings, SETTLE_SECONDS)
        crew.check()
    endpoint.close()
    seconds = time.monotonic() - begun
    taken = [(int(number), run_id) for ledger in (accepted, same) for number, run_id in ledger.lines()]
    found = in_child(judge, settings, taken, [(line[0], line[1]) for line in arrived.lines()])
    told = [fault for fault in found.faults if "bodies" in fault or "deliver" in fault or "told" in fault]
    doubled = [fault for fault in found.faults if "key" in fault]
    lost = [fault for fault in found.faults if fault not in told]
    lost += (
        crew.own_deaths
        + check(is_settled, "not all runs ended")
        + check(killer.num_kills == num_kills + num_same_kills, "not all kills were done")
    )
    num_refused = crew.log.count(LOST_LINE)
    return [
        Figure(
            f"1 ({name})",
            f"{killer.num_kills} kills, {killer.num_stalls} stalls over a lease, {num_runs + num_keys} runs,"
            f" {seconds:.0f} s",
            f"{len(lost)} lost, mixed or doubled; {found.num_claims} claims, {num_refused} late results refused",
            lost,
        ),
        Figure(
            f"2 ({name})",
            f"the same; an endpoint that fails {0.2:.0%}",
            f"{found.num_deliveries} ids in {found.num_attempts} tries, {len(told)} missing or with two bodies",
            told,
        ),
        Figure(
            f"5 ({name})",
            f"{num_clients} clients x {num_keys} keys, {num_same_kills} kills between",
            f"{len(same)} requests, {len({run_id for _, run_id in same.lines()})} runs",
            doubled + check(len({run_id for _, run_id in same.lines()}) == num_keys, "not one run for each key"),
        ),
    ]
