"""How long a model takes to load beside reading its files, and what memory it needs: `python -m benchmarks.loading FOLDER`.

Reading is from the page cache, into one buffer, with the conversion of every tensor to the working dtype; both contenders take
turns, each in a process of its own. `python -m benchmarks.make_weights FOLDER` makes a folder of Stable Diffusion 2.1's size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PAIRS = 3


def read(folder: Path) -> None:
    """All weights, as plainly as they can be had in bfloat16."""
    import torch

    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            header.pop("__metadata__", None)
            for entry in header.values():
                begin, end = entry["data_offsets"]
                buffer = bytearray(end - begin)
                opened.readinto(buffer)
                _kept.append(torch.frombuffer(buffer, dtype=torch.float16).to(torch.bfloat16))


def load(folder: Path) -> None:
    """As the worker does."""
    import torch

    from safelight.engine.models.loading import load_model

    _kept.append(load_model(folder, dtype=torch.bfloat16))


_kept: list[object] = []
CONTENDERS = {"read": read, "load": load}


def measure(name: str, folder: Path) -> None:
    """In a process of its own: seconds, and the most memory that was its own (mapped files are not) above the start."""
    import torch

    from safelight.engine.models import folders, single_file, unet  # noqa: F401 - not to be timed

    torch.set_num_threads(1)
    before = _own_memory()
    peak = before
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, _own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, began_cpu = time.perf_counter(), time.process_time()
    CONTENDERS[name](folder)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    is_over.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": max(peak, _own_memory()) - before}))


def _own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def compare(folder: Path) -> None:
    files = list(folder.rglob("*.safetensors"))
    num_bytes = sum(file.stat().st_size for file in files)
    for file in files:
        file.read_bytes()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(PAIRS):
        for name, found in results.items():
            command = [sys.executable, "-m", "benchmarks.loading", str(folder), "--only", name]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{num_bytes / 1e9:.2f} GB of files, {PAIRS} turns each, medians (least to most)")
    for name, found in results.items():
        cells = []
        for key, unit in (("seconds", "s"), ("cpu_seconds", "s of CPU")):
            values = sorted(each[key] for each in found)
            cells.append(f"{statistics.median(values):6.2f} {unit} ({values[0]:.2f} to {values[-1]:.2f})")
        memory = statistics.median(each["bytes"] for each in found) / num_bytes
        print(f"{name:5} {'  '.join(cells)}  {memory:.2f}x the files in memory")
    ratios = [
        loading["cpu_seconds"] / reading["cpu_seconds"]
        for loading, reading in zip(results["load"], results["read"], strict=True)
    ]
    print(f"load / read, CPU: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        measure(asked.only, asked.folder)
    else:
        compare(asked.folder)


if __name__ == "__main__":
    main()
