"""Promise 20: under load for long, a server takes no more memory and no more file descriptors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .crew import FreshCrew, furnish, in_child, settings_for
from .figures import Figure, check
from .judge import settle
from .traffic import Endpoint, Ledger, start_clients

WARM_SHARE = 0.4
"""The first part of the time is not looked at: caches fill, the allocator settles."""

SAMPLE_SECONDS = 1.0
MAX_SLOPE = 1.0
MIN_HOURS_TO_JUDGE = 1.0
MIN_SECONDS_TO_JUDGE = 120.0
"""Before that a server is still warming up."""

MAX_GROWTH = 4.0
MAX_MORE_FILES = 4
SETTLE_SECONDS = 60.0
MANY = 10_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    megabytes: float
    num_descriptors: int


def sample(pid: int) -> Sample:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(time.monotonic(), resident / 1e6, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def slope_per_hour(samples: Sequence[Sample]) -> float:
    """Megabytes an hour, by least squares."""
    times, sizes = [each.at for each in samples], [each.megabytes for each in samples]
    return float(np.polyfit(times, sizes, 1)[0]) * 3600


def soak(folder: Path, *, seconds: float) -> Figure:
    """Eight clients, one API, one worker, webhooks; short of an hour only growth as such is judged."""
    settings = settings_for(folder)
    key = in_child(furnish, settings)
    accepted, arrived = Ledger(folder / "accepted"), Ledger(folder / "arrived")
    endpoint = Endpoint(arrived, bad_share=0.02)
    seen: dict[str, list[Sample]] = {}
    with FreshCrew(settings, folder, num_workers=1).working() as crew:
        clients = start_clients(
            crew, key, accepted, lambda lane: range(lane, MANY, 8), num_clients=8, webhook=endpoint.url
        )
        deadline = time.monotonic() + seconds
        warm_at = time.monotonic() + WARM_SHARE * seconds
        while time.monotonic() < deadline and clients.is_alive():
            time.sleep(SAMPLE_SECONDS)
            if time.monotonic() > warm_at:
                for name, pid in crew.children.items():
                    seen.setdefault(name, []).append(sample(pid))
        is_alive = clients.is_alive()
        clients.kill()
        clients.join()
        is_settled = in_child(settle, settings, SETTLE_SECONDS)
        crew.check()
        deaths = crew.own_deaths
    endpoint.close()
    faults = deaths + check(is_alive, "the clients ended") + check(is_settled, "not all runs ended")
    return _figure(seen, len(accepted), seconds, faults)


def _figure(seen: dict[str, list[Sample]], num_runs: int, seconds: float, faults: list[str]) -> Figure:
    parts = []
    for name, samples in seen.items():
        slope = slope_per_hour(samples)
        third = max(1, len(samples) // 3)
        first, last = (
            float(np.median([each.megabytes for each in part])) for part in (samples[:third], samples[-third:])
        )
        descriptors = [each.num_descriptors for each in samples]
        growth = f"{last - first:+.1f} MB"
        if seconds >= MIN_HOURS_TO_JUDGE * 3600:
            growth += f" ({slope:+.1f} MB/h)"
            faults += check(slope < MAX_SLOPE, f"{name} grows by {slope:.1f} MB/h")
        parts.append(f"{name} {growth}, {min(descriptors)} to {max(descriptors)} files")
        if seconds >= MIN_SECONDS_TO_JUDGE:
            faults += check(last - first < MAX_GROWTH, f"{name} grew by {last - first:.1f} MB")
            # Connections come and go by the dozen; what leaks lifts the middle of them.
            before, after = (float(np.median(half)) for half in np.array_split(descriptors, 2))
            faults += check(after <= before + MAX_MORE_FILES, f"{name} holds {after:.0f} files after {before:.0f}")
    return Figure("20", f"{num_runs} runs in {seconds / 60:.1f} minutes", "; ".join(parts), faults)
