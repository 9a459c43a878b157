"""How long the dashboard's pages take on the server, and how large they are, with many runs stored.

`python -m benchmarks.dashboard --runs 100000 --days 30`
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks.filling import fill
from benchmarks.servers import serving

PAGES = (
    "/dashboard",
    "/dashboard/playground",
    "/dashboard/gallery",
    "/dashboard/gallery?text=cat",
    "/dashboard/runs",
    "/dashboard/runs?status=failed",
    "/dashboard/runs?deployment=posters&within=week",
    "/dashboard/runs?text=balloons+in+the+snow",
    "/dashboard/runs?text=nowhere+to+be+found",
    "/dashboard/runs/{run}",
    "/dashboard/models",
    "/dashboard/deployments/pinhole",
    "/dashboard/keys",
    "/dashboard/webhooks",
    "/dashboard/webhooks?status=failed",
    "/dashboard/settings",
)
MAX_MS = 100.0
MAX_BYTES = 200_000


@contextmanager
def signed_in(url: str, key: str) -> Iterator[httpx2.Client]:
    """A client with a session of the dashboard."""
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        answer = client.post("/dashboard/sign-in", data={"key": key}, headers={"Origin": url})
        assert answer.status_code == 303, answer.text
        yield client


def api_process(pid: int) -> int:
    """The pid of the API process of a server."""
    command = ["pgrep", "-P", str(pid), "-f", "safelight.app api"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def cpu_ms(pid: int) -> float:
    """What a process has used of a core so far: other work on the machine does not count."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") * 1000


def measure(client: httpx2.Client, path: str, *, count: int, pause_seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each of `count` requests, the first included, and the bytes of the page."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        answer = client.get(path)
        times.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (path, answer.status_code)
        time.sleep(pause_seconds)
    return times, len(answer.content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds between requests; over 2, figures are counted anew"
    )
    parser.add_argument("--data", type=Path, help="fill this folder, or measure what an earlier run filled there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        kept = data / "admin.key"
        if not kept.exists():
            kept.write_text(fill(data, num_runs=options.runs, num_days=options.days))
        with serving(data, OMP_NUM_THREADS="1") as (url, pid), signed_in(url, kept.read_text()) as client:
            return report(client, api_process(pid), count=options.count, pause_seconds=options.pause)


def report(client: httpx2.Client, pid: int, *, count: int, pause_seconds: float) -> int:
    """Measure every page and print a table. 1 when one is too slow or too large."""
    table = Table("page", "median ms", "slowest ms", "CPU ms", "kB")
    run = re.search(r"/dashboard/runs/([0-9a-f-]{36})", client.get("/dashboard/runs").text)
    assert run is not None
    is_fit = True
    for path in PAGES:
        before = cpu_ms(pid)
        times, num_bytes = measure(client, path.format(run=run[1]), count=count, pause_seconds=pause_seconds)
        used = (cpu_ms(pid) - before) / count
        is_fit &= median(times) <= MAX_MS and num_bytes <= MAX_BYTES
        table.add_row(path, f"{median(times):.0f}", f"{max(times):.0f}", f"{used:.0f}", f"{num_bytes / 1000:.0f}")
    Console().print(table)
    print(f"API process: {memory_mib(pid):.0f} MiB")
    return 0 if is_fit else 1


if __name__ == "__main__":
    sys.exit(main())
