"""Two models taking turns on one device, beside the plain copy of as many bytes:
`python -m benchmarks.swapping FOLDER`.

The models are two of the folder's, both in host memory. On a GPU (`--device cuda`) a swap takes the one out and the
other in, as the worker does; the copy is one flat tensor of the same bytes each way, from and to the same kind of
memory. A CPU has its models in host memory anyway, so both are served where they are, and nothing is moved. What can be
measured there is what moving adds to copying: every tensor of a model anew in host memory, module by module as a move
does it, beside one flat copy. Contenders take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import describe
from safelight.engine.models.base import ImageModel
from safelight.engine.models.loading import load_model
from safelight.engine.models.placing import move_model, num_bytes_of

GOAL = 1.5
HOST = torch.device("cpu")


class Turns:
    """Two models, of which one is on the device; a CPU, where none is elsewhere, makes do with one."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device = device
        num_models = 2 if device.type == "cuda" else 1
        models = [load_model(folder, device=device, dtype=torch.bfloat16) for _ in range(num_models)]
        self._here, self._away = models[0], models[-1]
        self.num_bytes = num_bytes_of(self._here)
        if device.type == "cuda":
            move_model(self._away, HOST)
        self._flat = torch.zeros(self.num_bytes, dtype=torch.uint8)
        self._flat_here = self._flat.to(device, copy=True)

    def swap(self) -> None:
        if self._device.type == "cuda":
            move_model(self._here, HOST)
            move_model(self._away, self._device)
        else:
            _copy_out_and_in(self._here)
        self._here, self._away = self._away, self._here

    def copy(self) -> None:
        """As many bytes out, and as many in."""
        self._flat = self._flat_here.to(HOST, copy=True)
        self._flat_here = self._flat.to(self._device, copy=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _copy_out_and_in(model: ImageModel) -> None:
    """What Module.to does, and on one device would not."""
    for _ in range(2):
        for network in model.networks:
            network._apply(torch.clone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    turns = Turns(asked.folder, torch.device(asked.device))
    contenders: dict[str, Callable[[], None]] = {"swap": turns.swap, "copy": turns.copy}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    now = time.perf_counter if asked.device != "cpu" else time.process_time
    for _ in range(asked.pairs):
        for name, contender in contenders.items():
            began = now()
            contender()
            times[name].append(now() - began)
    print(f"{turns.num_bytes / 1e9:.2f} GB out and as much in, on {asked.device}, {asked.pairs} turns\n{describe()}")
    for name, found in times.items():
        print(f"{name}  {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f})")
    ratios = [swap / copy for swap, copy in zip(times["swap"], times["copy"], strict=True)]
    print(f"swap / copy: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); goal {GOAL}")


if __name__ == "__main__":
    main()
