"""Promise 7: a run that kills its workers, and an engine that hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from safelight.config import Settings
from safelight.testing import FakeModel, value_of

from .crew import HUNG, Crew, furnish, in_child, opened, settings_for
from .figures import Figure, check
from .judge import all_runs, settle
from .traffic import Ledger, prompt_of, start_clients

POISON = 3
"""The number of the request that kills or hangs whoever draws it."""

SETTLE_SECONDS = 90.0


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
