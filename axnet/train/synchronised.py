"""Batch normalisation over the batches of all processes, on GPUs and CPUs."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from axnet.nn import AnatomyAwareAttention, MaskedAttention


class _Sum(torch.autograd.Function):
    """Sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SyncBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm that also runs on a CPU, where torch's refuses to; state and arguments are the same."""

    alone: type[nn.Module] = nn.BatchNorm2d
    """What it is where one process is alone."""

    def forward(self, input: Tensor) -> Tensor:
        """input [N, C, ...] normalised by the statistics of all processes in training, else by the running ones."""
        together = self.training and dist.is_initialized() and dist.get_world_size(self.process_group) > 1
        if input.device.type != "cpu":
            return super().forward(input)
        if not together:
            normalised: Tensor = _like(self, self.alone)(input)
            return normalised
        axes = [0, *range(2, input.dim())]
        # in float64: E[x^2] - E[x]^2 cancels in float32
        x = input.double()
        count = x.new_full((1,), input.numel() / input.shape[1])
        sums: Tensor = _Sum.apply(torch.cat((x.sum(axes), (x * x).sum(axes), count)), self.process_group)
        total, squares, n = sums.split((input.shape[1], input.shape[1], 1))
        mean = total / n
        variance = (squares / n - mean * mean).clamp(min=0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._track(mean.detach(), variance.detach() * (n / (n - 1).clamp(min=1)).detach())
        shape = [1, -1, *[1] * (input.dim() - 2)]
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            cast(Tensor, running).lerp_(now.to(cast(Tensor, running).dtype), cast(float, momentum))


def synchronised(model: nn.Module) -> None:
    """Turn every batch normalisation of a model into one over all processes; parameters and buffers stay the same."""
    for parent, name, norm in _children(model, _BatchNorm):
        if isinstance(parent, AnatomyAwareAttention | MaskedAttention) and type(norm) is nn.BatchNorm2d:
            setattr(parent, name, _like(norm, nn.SyncBatchNorm))  # whose kernels stand for torch's class, on CPUs too
        elif not isinstance(norm, nn.SyncBatchNorm):
            made = _like(norm, SyncBatchNorm)
            made.alone = type(norm)
            setattr(parent, name, made)


def separate(model: nn.Module) -> None:
    """Undo synchronised, and what Lightning synchronised on GPUs: the images' normalisations of a network."""
    for parent, name, norm in _children(model, nn.SyncBatchNorm):
        setattr(parent, name, _like(norm, norm.alone if isinstance(norm, SyncBatchNorm) else nn.BatchNorm2d))


def _children(model: nn.Module, kind: type[Any]) -> list[tuple[nn.Module, str, Any]]:
    return [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, kind)
    ]


def _like(norm: Any, kind: type[Any]) -> Any:
    """The same normalisation as another class, with the very same tensors: optimizers and DDP hold them already."""
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    made._parameters, made._buffers, made.training = norm._parameters, norm._buffers, norm.training
    return made
