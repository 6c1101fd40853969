"""The batch normalisation inside the attention modules, with nn.BatchNorm2d's state and semantics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axnet import functional
from axnet.reference import GateFunction
from axnet.types import Fusion


def gated_norm(
    norm: nn.BatchNorm2d,
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    fusion: Fusion = "mean",
    backend: str | None = None,
) -> Tensor:
    """Run functional.anatomy_attention with the parameters, buffers and mode of an nn.BatchNorm2d.

    momentum=None (cumulative average), track_running_stats=False, affine=False, eval mode and num_batches_tracked
    behave as in nn.BatchNorm2d.
    """
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    batch_statistics = norm.training or (norm.running_mean is None and norm.running_var is None)
    tracked = not norm.training or norm.track_running_stats
    return functional.anatomy_attention(
        x,
        mask,
        gate,
        norm.weight,
        norm.bias,
        norm.running_mean if tracked else None,
        norm.running_var if tracked else None,
        training=batch_statistics,
        momentum=momentum,
        eps=norm.eps,
        fusion=fusion,
        backend=backend,
    )


def gated_norm_average(
    norm: nn.BatchNorm2d,
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    fusion: Fusion = "mean",
    backend: str | None = None,
) -> Tensor:
    """gated_norm's result averaged over the pixels [N, C or A*C]; under running statistics it is never computed."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return gated_norm(norm, x, mask, gate, fusion, backend).mean((2, 3))
    return functional.attention_average(
        x,
        mask,
        gate,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        eps=norm.eps,
        fusion=fusion,
        backend=backend,
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
    return x.dtype if torch.is_autocast_enabled(x.device.type) else weight.dtype
