"""The two optimisers every stage uses: Muon for matrices and kernels, AdamW for everything else."""

from collections.abc import Iterable

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


def make_optimizers(
    modules: Iterable[nn.Module], *, muon_rate: float, adam_rate: float, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """One Muon for hidden matrices and kernels, one AdamW for vectors, embeddings and in- and output layers."""
    matrices, others = [], []
    for module in modules:
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            is_hidden = param.ndim >= 2 and "embedding" not in name and "conv_out" not in name and "conv_in" not in name
            (matrices if is_hidden else others).append(param)
    muon = Muon(matrices, lr=muon_rate, weight_decay=weight_decay)
    adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    return [muon, adam]


def rate_at(progress: float, *, warmup: float = 0.03, decay_from: float = 0.5) -> float:
    """Share of the full learning rate: up linearly, flat, then down linearly to nothing at the end of the budget."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 1.0 if progress < decay_from else max(0.0, (1 - progress) / (1 - decay_from))
