"""Promises 7 and 8: a run that kills its workers, an engine that hangs, and SIGTERM in the middle of work."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from safelight.config import Settings
from safelight.runs import RunStatus
from safelight.testing import FakeModel, value_of

from .crew import HUNG, Crew, furnish, in_child, opened, settings_for
from .figures import Figure, check
from .judge import all_runs, judge, settle
from .traffic import Ledger, prompt_of, start_clients

POISON = 3
"""The number of the request that kills or hangs whoever draws it."""

SETTLE_SECONDS = 90.0
DRAIN_SECONDS = 5.0
STOP_LEASE_SECONDS = 20.0
"""So long that a busy machine ends none: an attempt that is lost was lost by a stop. A successor asks
for no lease's end."""


class Poisoned(FakeModel):
    """Kills its process over one prompt, as a fault in a driver would."""

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        if value_of(prompt_of(POISON)) in conditioning[:, 0, 0].tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(x, sigma, timestep, conditioning)


class Hanging(FakeModel):
    """Never answers over one prompt."""

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        if value_of(prompt_of(POISON)) in conditioning[:, 0, 0].tolist():
            time.sleep(3600)
        return super().predict(x, sigma, timestep, conditioning)


def poison(folder: Path, *, num_runs: int, model: type[FakeModel] = Poisoned) -> Figure:
    """One bad run among good ones, on one worker."""
    settings = settings_for(folder, max_attempts=3, stall_seconds=1.0)
    key = in_child(furnish, settings)
    accepted = Ledger(folder / "accepted")
    deaths: list[str] = []
    with Crew(settings, folder, num_workers=1, model=lambda: model(step_seconds=0.01)).working() as crew:
        clients = start_clients(crew, key, accepted, lambda lane: [lane], num_clients=num_runs, webhook=None)
        clients.join()
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and not in_child(settle, settings, 1.0):
            crew.check()
        deaths = crew.own_deaths
    by_status, attempts, code = in_child(_ends, settings, {run_id: int(number) for number, run_id in accepted.lines()})
    expected = f"status {-signal.SIGKILL if model is Poisoned else HUNG}"
    faults = check(
        by_status == {"failed": [POISON], "succeeded": [n for n in range(num_runs) if n != POISON]}, str(by_status)
    )
    faults += check((attempts, code) == (3, "worker_lost"), f"{attempts} attempts, then {code}")
    faults += [death for death in deaths if expected not in death]
    what = "kills its worker" if model is Poisoned else "hangs its engine"
    figure = f"{attempts} attempts, {code}; {len(by_status.get('succeeded', []))} others succeeded"
    return Figure("7", f"a run that {what} among {num_runs - 1} others on one device", figure, faults)


async def _ends(settings: Settings, numbers: dict[str, int]) -> tuple[dict[str, list[int]], int, str]:
    ends: dict[str, list[int]] = {}
    attempts, code = 0, "no error"
    async with await opened(settings) as store:
        for run in await all_runs(store):
            ends.setdefault(run.status.value, []).append(numbers[run.id])
            if numbers[run.id] == POISON:
                attempts, code = run.num_attempts, run.error.code if run.error else code
    return {status: sorted(found) for status, found in ends.items()}, attempts, code


def sigterm(folder: Path, *, num_times: int) -> Figure:
    """API and worker by turns told to stop under load; runs are long enough that a stop always meets some."""
    settings = settings_for(
        folder, drain_seconds=DRAIN_SECONDS, lease_seconds=STOP_LEASE_SECONDS, heartbeat_seconds=STOP_LEASE_SECONDS / 4
    )
    key = in_child(furnish, settings)
    accepted = Ledger(folder / "accepted")
    faults: list[str] = []
    slowest = 0.0
    with Crew(settings, folder, num_workers=1, model=lambda: FakeModel(step_seconds=0.02)).working() as crew:
        clients = start_clients(
            crew, key, accepted, lambda lane: list(range(lane, 3 * num_times, 8)), num_clients=8, webhook=None
        )
        for number in range(num_times):
            while len(accepted) < 3 * number and clients.is_alive():
                time.sleep(0.01)
            name = ("w0", "api")[number % 2]
            crew.wait_until_it_listens(name)
            status, seconds = crew.terminate(name, within=DRAIN_SECONDS + 10)
            faults += check(status == 0, f"{name} ended with {status}")
            slowest = max(slowest, seconds)
            crew.start(name)
        clients.join()
        is_settled = in_child(settle, settings, SETTLE_SECONDS)
        faults += crew.own_deaths + check(is_settled, "not all runs ended")
    found = in_child(judge, settings, [(int(number), run_id) for number, run_id in accepted.lines()], None)
    costly = in_child(_num_costly, settings)
    faults += (
        found.faults
        + check(slowest < DRAIN_SECONDS + 5, f"one took {slowest:.1f} s")
        + check(costly == 0, f"{costly} runs lost an attempt")
    )
    figure = (
        f"{num_times} exits with 0, the slowest after {slowest:.1f} s; {found.num_runs} runs, {costly} lost an attempt"
    )
    return Figure("8", f"SIGTERM {num_times} times under load", figure, faults)


async def _num_costly(settings: Settings) -> int:
    async with await opened(settings) as store:
        return sum(run.num_attempts > 1 for run in await all_runs(store) if run.status is RunStatus.SUCCEEDED)
