"""Mixed requests from several clients: Safelight against a lock around diffusers, interleaved in one run.

`python -m benchmarks.serving --clients 8 --requests 24 --rounds 3`
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack

from rich.table import Table

from benchmarks.load import Report, closed_loop, median_and_spread, mixed_requests
from benchmarks.machine import publish
from benchmarks.servers import Target, peer, safelight


def measure(targets: list[Target], *, num_clients: int, num_requests: int, num_rounds: int) -> dict[str, list[Report]]:
    """Rounds of the same requests, each contender in turn, so that a slow minute of the machine meets all of them."""
    reports: dict[str, list[Report]] = {target.name: [] for target in targets}
    for target in targets:
        closed_loop(target, mixed_requests(2, seed=0), num_clients=2)
    for index in range(num_rounds):
        requests = mixed_requests(num_requests, seed=index + 1)
        for target in targets:
            reports[target.name].append(closed_loop(target, requests, num_clients=num_clients))
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        targets = [
            stack.enter_context(peer("lock around diffusers, fp32", "diffusers_lock")),
            stack.enter_context(peer("lock around diffusers, bf16", "diffusers_lock", "--dtype", "bfloat16")),
            stack.enter_context(safelight()),
        ]
        reports = measure(
            targets, num_clients=options.clients, num_requests=options.requests, num_rounds=options.rounds
        )
    publish(f"serving-{options.clients}-clients", _table(reports, options.clients))


def _table(reports: dict[str, list[Report]], num_clients: int) -> Table:
    table = Table(title=f"pinhole, 512 px, {num_clients} clients, every request with its own parameters")
    for heading in ("server", "images/s (spread)", "ratio", "p50 s", "p95 s", "failures"):
        table.add_column(heading)
    [baseline, *_] = reports.values()
    base = statistics.median(report.images_per_second for report in baseline)
    for name, rounds in reports.items():
        rates = [report.images_per_second for report in rounds]
        table.add_row(
            name,
            median_and_spread(rates),
            f"{statistics.median(rates) / base:.2f}",
            f"{statistics.median(report.latency(0.5) for report in rounds):.2f}",
            f"{statistics.median(report.latency(0.95) for report in rounds):.2f}",
            str(sum(report.num_failures for report in rounds)),
        )
    return table


if __name__ == "__main__":
    main()
