"""Batch normalisation over several processes in plain PyTorch, and what the fused backends share with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Statistics(NamedTuple):
    """Of all processes' batches together; float64."""

    values: Tensor
    """Values per channel, []."""
    mean: Tensor
    """[blocks*C]."""
    var: Tensor
    """[blocks*C], biased."""


class AllReduce(torch.autograd.Function):
    """Sum of a tensor over the processes of a group; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The sum, in every process."""
        ctx.group = group
        total = t.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The sum of the gradients."""
        total: Tensor = AllReduce.apply(grads[0], ctx.group)
        return total, None


def all_reduced(count: int, sum_y: Tensor, sum_yy: Tensor, group: dist.ProcessGroup) -> Statistics:
    """Statistics from the sums of every process, float64 [channels] each; differentiable."""
    own = torch.cat((sum_y.new_full((1,), count), sum_y, sum_yy))
    total: Tensor = AllReduce.apply(own, group)
    seen, size = total[0].clamp(min=1), sum_y.shape[0]
    mean = total[1 : 1 + size] / seen
    var = total[1 + size :] / seen - mean * mean
    return Statistics(total[0].detach(), mean, var.clamp(min=0))


def synchronised_norm(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup,
) -> Tensor:
    """Batch normalisation of y [N, C, H, W] by the statistics of all processes, op by op."""
    wide, pixels = y.double(), (0, 2, 3)
    found = all_reduced(y.numel() // y.shape[1], wide.sum(pixels), wide.square().sum(pixels), group)
    update_running(running_mean, running_var, found, momentum)
    scale = (found.var + eps).rsqrt() if weight is None else (found.var + eps).rsqrt() * weight.double()
    offset = -found.mean * scale if bias is None else bias.double() - found.mean * scale
    return (wide * scale[:, None, None] + offset[:, None, None]).to(y.dtype)


def update_running(mean: Tensor | None, var: Tensor | None, found: Statistics, momentum: float) -> None:
    """Move running statistics towards those found, as nn.SyncBatchNorm does; an empty batch leaves them."""
    if mean is None or var is None:
        return
    with torch.no_grad():
        share = momentum * (found.values > 0).double()
        unbiased = found.var * (found.values / (found.values - 1).clamp(min=1))
        mean.copy_(mean.double().lerp(found.mean, share))
        var.copy_(var.double().lerp(unbiased, share))
