"""How long a model takes to load beside reading its files, and what memory it needs:
`python -m benchmarks.loading FOLDER`.

Counted for the loader: everything from the folder's name to a model that draws, and what the first step costs above the
next one, since what is laid out late is loading too. Not counted: the arithmetic of a step, imports, starting Python.
Counted for reading: each tensor from the page cache into a buffer that is used again, and from there into memory of its
own in the working dtype; nothing can have them for less. Both take turns, each in a process of its own, on one thread.
Processor time is the figure to go by where others use the machine. `python -m benchmarks.make_weights FOLDER` makes a
folder of Stable Diffusion 2.1's size.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe

if TYPE_CHECKING:
    import torch

    from safelight.engine.models.base import ImageModel

TIME_GOAL, MEMORY_GOAL = 1.3, 1.15
SIDE = 64
"""Of the picture whose first step is looked at, in pixels: the smallest there is, so that little
arithmetic is in the way."""

_STORED = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4)}
_kept: list[object] = []


class Stopwatch:
    """Seconds and processor seconds since it was made."""

    def __init__(self) -> None:
        self._began = self._now()

    def read(self) -> dict[str, float]:
        return {name: value - self._began[name] for name, value in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def read(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """All weights, as plainly as they can be had."""
    import torch

    watch, buffer = Stopwatch(), bytearray()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as opened:
            for entry in _tensors(opened.read(int.from_bytes(opened.read(8), "little"))):
                name, size = _STORED[str(entry["dtype"])]
                count = math.prod(entry["shape"])
                if len(buffer) < count * size:
                    buffer = bytearray(count * size)
                opened.readinto(memoryview(buffer)[: count * size])
                stored = torch.frombuffer(buffer, dtype=getattr(torch, name), count=count)
                _kept.append(stored.to(dtype, copy=True))
    return watch.read()


def load(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """As the worker does, to a model that has drawn; what every later step takes too is left out."""
    from safelight.engine.models.loading import load_model

    watch = Stopwatch()
    model = load_model(folder, dtype=dtype)
    loaded = watch.read()
    _kept.append(model)
    first, *later = (_step(model) for _ in range(4))
    late = {name: max(0.0, first[name] - min(each[name] for each in later)) for name in first}
    return {name: loaded[name] + late[name] for name in loaded} | {"late_cpu_seconds": late["cpu_seconds"]}


def _step(model: ImageModel) -> dict[str, float]:
    """A prompt and one pass through the denoiser."""
    import torch

    watch = Stopwatch()
    hidden = model.encode("a red house on a green hill").hidden[None]
    latent = torch.zeros(1, *model.latent_shape(SIDE, SIDE))
    model.predict(latent, torch.ones(1), torch.full((1,), 500.0), hidden)
    return watch.read()


CONTENDERS: dict[str, Callable[[Path, torch.dtype], dict[str, float]]] = {"read": read, "load": load}


def measure(name: str, folder: Path, dtype: str) -> None:
    """In a process of its own: times, and the most memory above the start: its own, and with the files
    that are mapped."""
    import torch

    from safelight.engine.models import folders, single_file, unet  # noqa: F401 - not to be timed

    torch.set_num_threads(1)
    before = _memory()
    peaks = dict(before)
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            peaks.update({kind: max(peaks[kind], held) for kind, held in _memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = CONTENDERS[name](folder, getattr(torch, dtype))
    is_over.set()
    watcher.join()
    print(json.dumps(found | {kind: peaks[kind] - before[kind] for kind in peaks}))


def _memory() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"own_bytes": int(status["RssAnon"].split()[0]) * 1024, "all_bytes": int(status["VmRSS"].split()[0]) * 1024}


def _tensors(header: bytes) -> list[dict[str, list[int]]]:
    """In the order of the file."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    return sorted(entries.values(), key=lambda entry: entry["data_offsets"][0])


def compare(folder: Path, dtype: str, num_pairs: int) -> None:
    num_bytes = sum(_warm(file) for file in folder.rglob("*.safetensors")) * (2 if dtype == "float32" else 1)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(num_pairs):
        for name, found in results.items():
            command = [sys.executable, "-m", "benchmarks.loading", str(folder), "--dtype", dtype, "--only", name]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(
        f"{num_bytes / 1e9:.2f} GB of weights in {dtype}, {num_pairs} turns each, medians (least to most)\n{describe()}"
    )
    for name, found in results.items():
        times = [
            _spread([each[key] for each in found], unit) for key, unit in (("seconds", "s"), ("cpu_seconds", "s CPU"))
        ]
        print(f"{name}  {'   '.join(times)}")
    late = _spread([each["late_cpu_seconds"] for each in results["load"]], "s CPU")
    print(f"of it what the first step costs above the next: {late}")
    for key in ("cpu_seconds", "seconds"):
        ratios = [one[key] / other[key] for one, other in zip(results["load"], results["read"], strict=True)]
        print(f"load / read, {key}: {_spread(ratios)}; goal {TIME_GOAL}")
    for key, what in (
        ("own_bytes", "its own"),
        ("all_bytes", "with the file that is mapped, which the system may drop"),
    ):
        shares = [each[key] / num_bytes for each in results["load"]]
        print(
            f"peak memory / weights, {what}: {_spread(shares)}"
            + (f"; goal {MEMORY_GOAL}" if key == "own_bytes" else "")
        )


def _warm(file: Path) -> int:
    """Have the file in the page cache; its size in bytes."""
    with file.open("rb") as opened:
        while opened.read(2**24):
            pass
    return file.stat().st_size


def _spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f} {unit}".strip() + f" ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="in half precision, as make_weights writes it")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        measure(asked.only, asked.folder, asked.dtype)
    else:
        compare(asked.folder, asked.dtype, asked.pairs)


if __name__ == "__main__":
    main()
