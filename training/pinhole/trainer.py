"""The loop all stages share: a budget, learning rates, checkpoints that survive being killed, one line
of news now and then.

Everything random in step k comes from (seed, k), so that a stage killed and resumed ends as if never stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.pinhole.files import write_atomically
from training.pinhole.optimizers import rate_at

Step = Callable[[np.random.Generator], tuple[Tensor, int, dict[str, float]]]
"""From the randomness of this step: the loss, how many pictures it saw, and numbers worth printing."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a stage may take, in seconds of its own running, or in steps where a test wants exactness."""

    seconds: float | None = None
    steps: int | None = None

    def progress(self, *, seconds: float, steps: int) -> float:
        if self.steps is not None:
            return steps / self.steps
        assert self.seconds is not None
        return seconds / self.seconds


@dataclass(slots=True)
class Clock:
    """What a checkpoint remembers of the run so far."""

    steps: int = 0
    pictures: int = 0
    seconds: float = 0.0
    rate: float = 1.0
    """Share of the full learning rates, on top of where in the budget a step is."""
    news: dict[str, float] = field(default_factory=dict)


def save_atomically(value: Any, path: Path) -> None:
    """Raises DiskFullError."""
    write_atomically(path, lambda file: torch.save(value, file))


def load_modules(path: Path, modules: dict[str, nn.Module]) -> None:
    """The named modules out of a stage's checkpoint."""
    saved = torch.load(path, map_location="cpu", weights_only=False)
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])


class Trainer:
    """One stage's modules and optimisers, trained step by step and checkpointed in one file."""

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        *,
        folder: Path,
        budget: Budget,
        seed: int = 0,
        averaged: dict[str, nn.Module] | None = None,
        average_decay: float = 0.999,
        decay_from: float = 0.5,
        later_rate: float = 1.0,
        checkpoint_seconds: float = 120,
    ) -> None:
        self.name, self.modules, self.optimizers, self.budget = name, modules, optimizers, budget
        self.path, self.seed, self.clock = folder / f"{name}.pt", seed, Clock()
        self.averaged, self.average_decay = averaged or {}, average_decay
        self.decay_from, self.checkpoint_seconds = decay_from, checkpoint_seconds
        self.later_rate = later_rate
        self._full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.modules.values())).parameters()).device

    @property
    def progress(self) -> float:
        return self.budget.progress(seconds=self.clock.seconds, steps=self.clock.steps)

    def resume(self) -> None:
        """From this stage's checkpoint, if there is one; from one that is weights alone, with the clock at nothing and
        at `later_rate` of the learning rates."""
        if not self.path.exists():
            return
        saved = torch.load(self.path, map_location="cpu", weights_only=False)
        for name, module in (self.modules | self.averaged).items():
            if name in saved["modules"]:
                module.load_state_dict(saved["modules"][name])
        if "clock" in saved:
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.clock = saved["clock"]
        else:
            self.clock.rate = self.later_rate

    def checkpoint(self) -> None:
        save_atomically(
            {
                "modules": {name: module.state_dict() for name, module in (self.modules | self.averaged).items()},
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "clock": self.clock,
            },
            self.path,
        )

    def run(self, step: Step, *, on_checkpoint: Callable[[], None] = lambda: None) -> None:
        """Until the budget is spent; leaves a checkpoint behind."""
        # On a CPU the fused attention's way back is slower than the plain one's.
        kernels = [SDPBackend.MATH] if self.device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(kernels):
            self._run(step, on_checkpoint)

    def _run(self, step: Step, on_checkpoint: Callable[[], None]) -> None:
        last_saved = last_told = time.monotonic()
        while self.progress < 1:
            began = time.monotonic()
            self._step(step)
            now = time.monotonic()
            self.clock.seconds += now - began
            if now - last_told > 20:
                self._tell()
                last_told = now
            if now - last_saved > self.checkpoint_seconds:
                self.checkpoint()
                on_checkpoint()
                last_saved = time.monotonic()
                self.clock.seconds += last_saved - now
        self._tell()
        self.checkpoint()

    def _step(self, step: Step) -> None:
        share = self.clock.rate * rate_at(self.progress, decay_from=self.decay_from)
        for optimizer, rates in zip(self.optimizers, self._full_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
        random = np.random.default_rng([self.seed, self.clock.steps])
        torch.manual_seed(int(random.integers(2**62)))
        loss, pictures, news = step(random)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        self.clock.steps += 1
        self.clock.pictures += pictures
        for key, value in news.items():
            self.clock.news[key] = 0.95 * self.clock.news.get(key, value) + 0.05 * value

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets faster, or it would carry the first random weights for a thousand steps.
        decay = min(self.average_decay, (1 + self.clock.steps) / (10 + self.clock.steps))
        for name, average in self.averaged.items():
            source = self.modules[name.removesuffix(".average")]
            for kept, current in zip(average.parameters(), source.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)

    def _tell(self) -> None:
        speed = self.clock.pictures / max(self.clock.seconds, 1e-9)
        news = "  ".join(f"{key} {value:.4f}" for key, value in self.clock.news.items())
        print(f"{self.name}: {self.progress:5.1%}  {self.clock.pictures} pictures  {speed:.1f}/s  {news}", flush=True)
