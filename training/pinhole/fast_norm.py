"""Group normalisation whose backward pass suits channels-last tensors with few channels on a CPU.

PyTorch's own took two thirds of a training step of the autoencoder there; with this one steps go twice as fast. The
values are the same.
"""

import torch
from torch import Tensor, nn


class _GroupNorm(torch.autograd.Function):
    """Per row and channel, y = x * scale + shift; both passes are a few sums and one fused multiply-add."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        rows, channels = x.shape[:2]
        size = x[0, 0].numel() * channels // groups
        sums = x.sum((2, 3), dtype=torch.float32).view(rows, groups, -1).sum(-1) / size
        squares = (x * x).sum((2, 3), dtype=torch.float32).view(rows, groups, -1).sum(-1) / size
        rstd = (squares - sums * sums).clamp_min(0).add(eps).rsqrt()
        scale = (rstd[:, :, None] * weight.float().view(1, groups, -1)).view(rows, channels)
        shift = bias.float() - (sums[:, :, None] * scale.view(rows, groups, -1)).view(rows, channels)
        ctx.save_for_backward(x, weight, sums, rstd, scale)
        ctx.groups, ctx.size = groups, size
        return torch.addcmul(_spread(shift, x), x, _spread(scale, x))

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, mean, rstd, scale = ctx.saved_tensors
        rows, groups = mean.shape
        dy_sum = dy.sum((2, 3), dtype=torch.float32).view(rows, groups, -1)
        dyx_sum = (dy * x).sum((2, 3), dtype=torch.float32).view(rows, groups, -1)
        w = weight.float().view(1, groups, -1)
        normed = (dyx_sum - mean[:, :, None] * dy_sum) * rstd[:, :, None]
        slope = -(normed * w).sum(-1) * rstd * rstd / ctx.size
        offset = -(dy_sum * w).sum(-1) * rstd / ctx.size - slope * mean
        per_channel = lambda t: t[:, :, None].expand_as(dy_sum).reshape(rows, -1)  # noqa: E731
        dx = torch.addcmul(_spread(per_channel(offset), x), x, _spread(per_channel(slope), x))
        dx = dx.addcmul_(dy, _spread(scale, x))
        return dx, normed.sum(0).flatten().to(weight.dtype), dy_sum.sum(0).flatten().to(weight.dtype), None, None


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, :, None, None]


def _forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
    return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def use_fast_norms(model: nn.Module) -> None:
    """Every group normalisation of this model, from now on; its weights and their names stay."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = _forward.__get__(module)
