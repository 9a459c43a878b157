"""Mixed requests over HTTP: Safelight against what people would use instead, interleaved in one run.

`python -m benchmarks.serving --clients 8 --requests 24 --rounds 3`, of some only: `--only lock --only safelight`.

Two loads: clients that always wait for an answer (how many images a second), and Poisson arrivals at a share of each
contender's own rate, then of the slowest's (how long a short request waits beside long ones; its quantiles are those of
all rounds together and want many requests: `--requests 80`).
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack

from rich.table import Table

from benchmarks.contenders import CONTENDERS, chosen
from benchmarks.load import Report, closed_loop, median_and_spread, mixed_requests, open_loop, pooled_and_spread
from benchmarks.machine import publish
from benchmarks.servers import Target, model_name

Reports = dict[str, list[Report]]


def measure_closed(
    targets: list[Target], *, num_clients: int, num_requests: int, num_rounds: int, side: int
) -> Reports:
    """Rounds of the same requests, each contender in turn, so that a slow minute of the machine meets all of them."""
    reports: Reports = {target.name: [] for target in targets}
    for target in targets:
        closed_loop(target, mixed_requests(2, seed=0, side=side), num_clients=2)
    for index in range(num_rounds):
        requests = mixed_requests(num_requests, seed=index + 1, side=side)
        for target in targets:
            reports[target.name].append(closed_loop(target, requests, num_clients=num_clients))
    return reports


def measure_open(
    targets: list[Target], rates: dict[str, float], *, num_requests: int, num_rounds: int, side: int
) -> Reports:
    """The same arrivals and requests for each contender, scaled to its rate."""
    reports: Reports = {target.name: [] for target in targets}
    for index in range(num_rounds):
        requests = mixed_requests(num_requests, seed=index + 101, side=side)
        for target in targets:
            report = open_loop(target, requests, per_second=rates[target.name], seed=index + 1)
            reports[target.name].append(report)
    return reports


def main() -> None:
    options = _parser().parse_args()
    with ExitStack() as stack:
        targets = [stack.enter_context(each.start(each.title)) for each in chosen(options.only)]
        closed = measure_closed(
            targets,
            num_clients=options.clients,
            num_requests=options.requests,
            num_rounds=options.rounds,
            side=options.side,
        )
        publish(f"serving-{options.clients}-clients", _closed_table(closed, options.clients, options.side))
        if options.load <= 0:
            return
        capacity = {name: _rate(rounds) for name, rounds in closed.items()}
        slowest = min(capacity.values())
        own = {name: options.load * rate for name, rate in capacity.items()}
        equal = dict.fromkeys(capacity, options.load * slowest)
        for kind, whose, rates in (("own", "its own", own), ("equal", "the slowest's", equal)):
            reports = measure_open(
                targets, rates, num_requests=options.requests, num_rounds=options.rounds, side=options.side
            )
            about = f"Poisson arrivals at {options.load:.0%} of {whose} capacity"
            publish(f"serving-arrivals-{kind}", _open_table(reports, rates, about, options.side))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity that arrives; 0: no such load")
    parser.add_argument("--only", action="append", default=[], choices=[each.name for each in CONTENDERS])
    return parser


def _rate(rounds: list[Report]) -> float:
    return statistics.median(report.images_per_second for report in rounds)


def _closed_table(reports: Reports, num_clients: int, side: int) -> Table:
    table = Table(title=f"{model_name()}, {side} px, {num_clients} clients, every request with its own parameters")
    for heading in ("server", "images/s (spread)", "ratio", "p50 s", "p95 s", "failures"):
        table.add_column(heading)
    [baseline, *_] = reports.values()
    for name, rounds in reports.items():
        table.add_row(
            name,
            median_and_spread([report.images_per_second for report in rounds]),
            f"{_rate(rounds) / _rate(baseline):.2f}",
            f"{statistics.median(report.latency(0.5) for report in rounds):.2f}",
            f"{statistics.median(report.latency(0.95) for report in rounds):.2f}",
            str(sum(report.num_failures for report in rounds)),
        )
    return table


def _open_table(reports: Reports, rates: dict[str, float], about: str, side: int) -> Table:
    table = Table(title=f"{model_name()}, {side} px, {about}")
    for heading in (
        "server",
        "requests/s",
        "p50 s (rounds)",
        "p95 s (rounds)",
        "short: p50 s",
        "short: p95 s",
        "failures",
    ):
        table.add_column(heading)
    for name, rounds in reports.items():
        short = [report.short_latencies for report in rounds]
        everyone = [[answer.latency_seconds for answer in report.answers] for report in rounds]
        table.add_row(
            name,
            f"{rates[name]:.2f}",
            pooled_and_spread(everyone, 0.5),
            pooled_and_spread(everyone, 0.95),
            pooled_and_spread(short, 0.5),
            pooled_and_spread(short, 0.95),
            str(sum(report.num_failures for report in rounds)),
        )
    return table


if __name__ == "__main__":
    main()
