"""The two optimisers every stage uses: Muon for matrices and kernels, AdamW for everything else."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly (Jordan et al. 2024, Muon, Newton-Schulz of order five)."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    is_tall = x.size(0) > x.size(1)
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before they are applied; kernels count as matrices."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param.grad))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalise(param.grad.lerp(buffer, group["momentum"]).reshape(len(param), -1))
                scale = max(1.0, update.size(0) / update.size(1)) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update.view_as(param).to(param.dtype), alpha=-group["lr"] * scale)


def is_hidden(name: str, param: Tensor) -> bool:
    """Matrices and kernels between layers, but not those at the ends nor those that carry the picture
    past the blocks."""
    others = ("embedding", "conv_in", "conv_out", "conv_shortcut", "samplers", "quant")
    return param.ndim >= 2 and not any(part in name for part in others)


def make_optimizers(
    modules: Mapping[str, nn.Module],
    *,
    muon_rate: float,
    adam_rate: float,
    kernel_rate: float | None = None,
    weight_decay: float = 0.01,
) -> list[torch.optim.Optimizer]:
    """One Muon for what is hidden, one AdamW for everything else, kernels at a rate of their own if one is given.

    Steps of both have one size however small the gradient. Muon's weight decay is what bounds its matrices: at one, no
    singular value can grow beyond one.
    """
    named = [(f"{home}.{name}", param) for home, module in modules.items() for name, param in module.named_parameters()]
    named = [(name, param) for name, param in named if param.requires_grad]
    muon = Muon([p for name, p in named if is_hidden(name, p)], lr=muon_rate, weight_decay=weight_decay)
    others = [p for name, p in named if not is_hidden(name, p)]
    groups: list[dict[str, Any]] = [{"params": others}]
    if kernel_rate is not None:
        kernels = [p for p in others if p.ndim >= 2]
        groups = [{"params": [p for p in others if p.ndim < 2]}, {"params": kernels, "lr": kernel_rate}]
    return [muon, torch.optim.AdamW(groups, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.01)]


def rate_at(progress: float, *, warmup: float = 0.03, decay_from: float = 0.5) -> float:
    """Share of the full learning rate: up linearly, flat, then down linearly to nothing at the end of the budget."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 1.0 if progress < decay_from else max(0.0, (1 - progress) / (1 - decay_from))
