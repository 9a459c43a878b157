"""A worker process as the server starts it, but for its model: FakeModel, slowed down. Each step is a line in `steps`.

    python -m tests.lifecycle.fake_worker DATA, with the settings on standard input

A prompt of "hang" stops the first process that draws it for ever; one of "lose" takes it its device.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch

import safelight.app
from safelight.config import Settings
from safelight.engine import faults
from safelight.engine.host import EngineHost
from safelight.testing import FakeModel, value_of


class Slow(FakeModel):
    """Says which timestep it was asked about, and when."""

    def __init__(self, folder: Path) -> None:
        super().__init__(std=0.5, step_seconds=0.05)
        self._folder = folder

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        if value_of("hang") in conditioning[:, 0, 0].tolist() and not (self._folder / "has hung").exists():
            (self._folder / "has hung").touch()
            time.sleep(3600)
        if value_of("lose") in conditioning[:, 0, 0].tolist() and not (self._folder / "was lost").exists():
            (self._folder / "was lost").touch()
            faults.is_lost = lambda device: True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        denoised = super().predict(x, sigma, timestep, conditioning)
        with (self._folder / "steps").open("a") as file:
            file.write(f"{float(timestep[0])}\n")
        return denoised


def engine_for(folder: Path, settings: Settings, device: str) -> EngineHost:
    return EngineHost(
        settings.engine, checkpoint_seconds=settings.worker.checkpoint_seconds, load=lambda weights: Slow(folder)
    )


if __name__ == "__main__":
    safelight.app.engine_for = partial(engine_for, Path(sys.argv[1]))
    sys.exit(safelight.app.main(["worker", "cpu"]))
