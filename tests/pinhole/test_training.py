"""The stages: killed and resumed they end the same; a full disk is said and harms nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.faults.away import NO_MOUNT, small_disk
from training.pinhole.denoiser import signal_shares
from training.pinhole.echoes import echo
from training.pinhole.fast_norm import use_fast_norms
from training.pinhole.files import DiskFullError, write_atomically
from training.pinhole.optimizers import make_optimizers
from training.pinhole.trainer import Budget, Trainer, save_atomically


def train(folder: Path, *, killed_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    average = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    average.load_state_dict(model.state_dict())
    trainer = Trainer(
        "tiny",
        {"model": model},
        make_optimizers({"model": model}, muon_rate=0.02, adam_rate=1e-3),
        folder=folder,
        budget=Budget(steps=20),
        averaged={"model.average": average},
        checkpoint_seconds=0,
    )
    trainer.resume()

    def step(random: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        if trainer.clock.steps == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = torch.from_numpy(random.normal(size=(16, 4))).float() + 0.1 * torch.randn(16, 4)
        loss = (model(rows) - rows.roll(1, 1)).square().mean()
        return loss, len(rows), {"loss": loss.item()}

    trainer.run(step)
    return average


def test_a_stage_killed_and_resumed_ends_as_if_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    killed = subprocess.run(
        [sys.executable, __file__, tmp_path / "cut", "13"], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    resumed = train(tmp_path / "cut")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stage_that_goes_on_from_weights_alone_keeps_to_smaller_steps(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    save_atomically({"modules": {"model": model.state_dict()}}, tmp_path / "tiny.pt")
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0)]
    trainer = Trainer(
        "tiny", {"model": model}, optimizers, folder=tmp_path, budget=Budget(steps=40), later_rate=0.25, decay_from=0.5
    )
    trainer.resume()
    rates = []

    def step(_: np.random.Generator) -> tuple[Tensor, int, dict[str, float]]:
        rates.append(optimizers[0].param_groups[0]["lr"])
        return model(torch.zeros(1, 4)).sum(), 1, {}

    trainer.run(step)
    assert max(rates) == 0.25


def test_a_finished_stage_does_nothing_more(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, killed_at=20)


def _keep(path: Path, numbers: int) -> None:
    write_atomically(path, lambda file: np.save(file, np.zeros(numbers)))


@pytest.mark.parametrize("save", [_keep, lambda path, numbers: save_atomically(torch.zeros(numbers), path)])
def test_a_full_disk_is_said_and_leaves_what_was_there(save: Callable[[Path, int], None], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as is_mounted:
        if not is_mounted:
            pytest.skip(NO_MOUNT)
        path = tmp_path / "disk" / "stage"
        save(path, 1000)
        before = path.read_bytes()
        with pytest.raises(DiskFullError, match=r"free some space"):
            save(path, 1_000_000)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_cut_short_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage.pt"
    save_atomically({"steps": 1}, path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"steps": 2}, path)
    monkeypatch.undo()
    assert torch.load(path) == {"steps": 1}


def test_the_fast_norm_is_the_usual_norm_forth_and_back() -> None:
    torch.manual_seed(0)
    usual, fast = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
    nn.init.uniform_(usual.weight, 0.5, 2)
    nn.init.normal_(usual.bias)
    fast.load_state_dict(usual.state_dict())
    use_fast_norms(fast)
    rows, weights = torch.randn(3, 16, 8, 8) + 1, torch.randn(3, 16, 8, 8)
    gradients = []
    for norm in (usual, fast):
        copy = rows.clone().requires_grad_()
        (norm(copy) * weights).sum().backward()
        gradients.append((copy.grad, norm.weight.grad, norm.bias.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_perfect_denoiser_echoes_the_latent_itself() -> None:
    true = torch.randn(2, 20, 4, 4, generator=torch.Generator().manual_seed(0))
    shares, words = signal_shares(), torch.zeros(2, 40, 192)

    def perfect(noisy: Tensor, time: int, _: Tensor) -> SimpleNamespace:
        clean, signal, rest = torch.cat([true, true]), shares[time].sqrt(), (1 - shares[time]).sqrt()
        return SimpleNamespace(sample=signal * (noisy - signal * clean) / rest - rest * clean)

    drawn = echo(perfect, true, words, words, start=900, guidance=4.0)  # type: ignore[arg-type]
    torch.testing.assert_close(drawn, true, atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    train(Path(sys.argv[1]), killed_at=int(sys.argv[2]))
