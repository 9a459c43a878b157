"""What the server adds to the model: one request at a time, start, memory, first picture.

`python -m benchmarks.door --requests 40`. What is timed goes over a bare socket that stays open: Python's `http.client`
takes 0.8 ms of processor time of its own for a picture of 512 px, httpx2 2.4.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.table import Table

from benchmarks.load import Answer, fate, median_and_spread, quantile_of
from benchmarks.machine import publish
from benchmarks.servers import Target, peer, safelight, wait_until_compiled

FEW_STEPS, MANY_STEPS = 4, 20
"""What is added to a request grows with its steps by what the engine does between two of them."""

REQUEST: dict[str, object] = {
    "prompt": "a red circle",
    "num_inference_steps": MANY_STEPS,
    "seed": 1,
    "sampler": "euler",
}

WARM = 3
"""Requests that are not counted."""


def api_memory_mib(target: Target) -> float:
    """Resident memory of the API process."""
    [pid] = subprocess.run(
        ["pgrep", "-P", str(target.pid), "-f", "safelight.app api"], capture_output=True, text=True, check=True
    ).stdout.split()
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def connect(target: Target) -> socket.socket:
    return socket.create_connection(_address_of(target), timeout=600)


def ask(connection: socket.socket, target: Target, request: dict[str, object]) -> Answer:
    """Send `request` and read its answer whole."""
    body = json.dumps(request).encode()
    host, port = _address_of(target)
    head = (
        f"POST /pinhole/predict HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: {target.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    connection.sendall(head.encode() + body)
    answer = _receive(connection)
    latency = time.perf_counter() - began
    head_of_answer, _, content = answer.partition(b"\r\n\r\n")
    return fate(request, int(head_of_answer.split()[1]), content, latency=latency)


def _address_of(target: Target) -> tuple[str, int]:
    host, _, port = target.url.removeprefix("http://").partition(":")
    return host, int(port)


def _receive(connection: socket.socket) -> bytes:
    """Head and body of an answer that says how long it is."""
    received, length = bytearray(), None
    while length is None or len(received) < length:
        more = connection.recv(2**20)
        assert more, "the server hung up"
        received += more
        if length is None and (end := received.find(b"\r\n\r\n")) >= 0:
            told = re.search(rb"(?i)content-length: (\d+)", received[:end])
            assert told is not None, received[:end]
            length = end + 4 + int(told[1])
    return bytes(received)


def added_by(target: Target, count: int) -> dict[int, list[float]]:
    """What came on top of each run's own run_time_ms, by its steps, which take turns. Milliseconds."""
    added: dict[int, list[float]] = {FEW_STEPS: [], MANY_STEPS: []}
    with closing(connect(target)) as connection:
        for number in range(WARM + count):
            for num_steps, values in added.items():
                answer = ask(connection, target, {**REQUEST, "num_inference_steps": num_steps})
                if number >= WARM:
                    values.append(1000 * answer.latency_seconds - answer.run_time_ms)
    return added


def split(added: Mapping[int, Sequence[float]]) -> tuple[list[float], list[float]]:
    """Of each pair of requests: what door, store and PNG add, and what the engine does between two steps, by the line
    through both."""
    pairs = list(zip(added[FEW_STEPS], added[MANY_STEPS], strict=True))
    between = [(many - few) / (MANY_STEPS - FEW_STEPS) for few, many in pairs]
    return [few - FEW_STEPS * step for (few, _), step in zip(pairs, between, strict=True)], between


def alternate(ours: Target, bare: Target, count: int) -> tuple[list[float], list[float]]:
    """Latencies of ours, and what the bare pipeline took, in turn. Seconds."""
    latencies, bare_seconds = [], []
    with closing(connect(ours)) as one, closing(connect(bare)) as other:
        for _ in range(WARM + count):
            latencies.append(ask(one, ours, REQUEST).latency_seconds)
            bare_seconds.append(ask(other, bare, REQUEST).run_time_ms / 1000)
    return latencies[WARM:], bare_seconds[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", default="1")
    options = parser.parse_args()
    settings = {"SAFELIGHT_ENGINE__DTYPE": options.dtype, "SAFELIGHT_ENGINE__NUM_THREADS": options.threads}
    arguments = ("--dtype", options.dtype, "--threads", options.threads)
    table = Table(title=f"pinhole, 512 px, 20 guided steps, {options.dtype}, {options.threads} thread(s)")
    for heading in ("what", "p50 (spread)", "p95"):
        table.add_column(heading)
    began = time.monotonic()
    with safelight(**settings) as ours:
        table.add_row("start to ready, s", f"{ours.start_seconds:.2f}", "")
        with closing(connect(ours)) as connection:
            ask(connection, ours, REQUEST)
        table.add_row("start to first picture, cold, s", f"{time.monotonic() - began:.2f}", "")
        wait_until_compiled(ours)
        added = added_by(ours, options.requests)
        with peer("bare pipeline", "diffusers_lock", *arguments) as bare:
            latencies, bare_seconds = alternate(ours, bare, options.requests)
        for name, values in (("latency, s", latencies), ("bare diffusers pipeline, s", bare_seconds)):
            table.add_row(name, median_and_spread(values), f"{quantile_of(values, 0.95):.3g}")
        ratios = [one / other for one, other in zip(latencies, bare_seconds, strict=True)]
        table.add_row("latency / bare pipeline", median_and_spread(ratios), f"{quantile_of(ratios, 0.95):.3g}")
        door, between = split(added)
        for name, values in (
            *((f"added to run_time_ms, {num_steps} steps, ms", values) for num_steps, values in added.items()),
            ("of that between two steps of the engine, ms", between),
            ("of that door + store + PNG, ms", door),
        ):
            table.add_row(name, median_and_spread(values), f"{quantile_of(values, 0.95):.3g}")
        table.add_row("memory of the API process, MiB", f"{api_memory_mib(ours):.0f}", "")
    publish("door", table)


if __name__ == "__main__":
    main()
