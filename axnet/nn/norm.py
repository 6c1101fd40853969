"""The normalisation inside the attention modules: batch normalisations are fused, any other module is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from axnet import functional
from axnet.nn.calls import is_plain
from axnet.reference import GateFunction
from axnet.types import Fusion

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


def is_fused(norm: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether the kernels stand for the module: a batch normalisation that nothing was wrapped around or hung on."""
    return is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm)


def given_statistics(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Running mean and variance of a fused normalisation that normalises by them, else None."""
    if not is_fused(norm) or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    return norm.running_mean, norm.running_var


def counted(norm: BatchNorm) -> float:
    """The momentum of this call, which num_batches_tracked counts while training."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum


def gated_norm(
    norm: nn.Module, x: Tensor, mask: Tensor, gate: GateFunction, fusion: Fusion = "mean", backend: str | None = None
) -> Tensor:
    """norm of the gated blend Y [N, C or A*C, H, W]: functional.anatomy_attention for batch normalisations.

    momentum=None (cumulative average), track_running_stats=False, affine=False, eval mode and num_batches_tracked
    behave as in nn.BatchNorm2d; nn.SyncBatchNorm takes the statistics of its process group. Any other module, and any
    that is hooked, wrapped, parametrised or sharded, is called with Y.
    """
    if norm is None:
        raise TypeError("norm is None, expected a module: nn.Identity() where nothing is to be normalised.")
    if not is_fused(norm):
        y: Tensor = norm(functional.attention_blend(x, mask, gate, fusion=fusion, backend=backend))
        return y
    training, mean, var = norm.training, norm.running_mean, norm.running_var
    momentum = counted(norm)
    tracked = not training or norm.track_running_stats
    return functional.anatomy_attention(
        x,
        mask,
        gate,
        norm.weight,
        norm.bias,
        mean if tracked else None,
        var if tracked else None,
        training=training or (mean is None and var is None),
        momentum=momentum,
        eps=norm.eps,
        fusion=fusion,
        backend=backend,
        process_group=_group(norm) if training else None,
    )


def _group(norm: BatchNorm) -> ProcessGroup | None:
    """The processes that a batch normalisation shares its statistics with; None where it has its own."""
    if not isinstance(norm, nn.SyncBatchNorm):
        return None
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized():
        return None
    group: ProcessGroup | None = norm.process_group or dist.group.WORLD
    return group


def gated_norm_average(
    norm: nn.Module, x: Tensor, mask: Tensor, gate: GateFunction, fusion: Fusion = "mean", backend: str | None = None
) -> Tensor:
    """gated_norm's result averaged over the pixels [N, C or A*C]; under running statistics it is never computed."""
    statistics = given_statistics(norm)
    if statistics is None or not is_fused(norm):
        return gated_norm(norm, x, mask, gate, fusion, backend).mean((2, 3))
    return functional.attention_average(
        x, mask, gate, norm.weight, norm.bias, *statistics, eps=norm.eps, fusion=fusion, backend=backend
    )


def check_channels(x: Tensor, channels: int) -> None:
    """Raise ValueError where x [N, C, H, W] does not have the channels the module was built for."""
    if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] != channels:
        raise ValueError(f"x has {x.shape[1]} channels (shape {list(x.shape)}), expected {channels}.")


def check_positive(name: str, value: int, largest: int | None = None) -> None:
    """Raise ValueError where a count is not a whole number from 1 (to `largest`)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (largest is not None and value > largest):
        accepted = "1 or more" if largest is None else f"1 to {largest}"
        raise ValueError(f"{name} is {value!r}, expected a whole number, {accepted}.")


def gate_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """Type in which descriptors enter a gate: that of its weights (autocast decides for itself)."""
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    return x.dtype if autocast else weight.dtype
