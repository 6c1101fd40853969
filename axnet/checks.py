"""Argument checks of the public functions: one sentence that names the argument, what came, what is accepted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.ops.layouts import accumulator

FEATURE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_ANATOMIES = 16
MAX_MAPS = 64


def features(x: Tensor) -> None:
    """Check x: [N, C, H, W] of a floating type with at least one channel and one pixel."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a tensor [N, C, H, W].")
    if x.dtype not in FEATURE_TYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected float32, float64, bfloat16 or float16.")
    if x.dim() != 4:
        raise ValueError(f"x has shape {list(x.shape)}, expected four dimensions [N, C, H, W].")
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x has shape {list(x.shape)}, expected at least one channel and one pixel.")


def prepared_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as the ops take it: [N, A, H, W] of the accumulation type, contiguous; raises where it cannot be."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}, expected a tensor [N, A, H, W].")
    if mask.dim() != 4:
        raise ValueError(f"mask has shape {list(mask.shape)}, expected four dimensions [N, A, H, W].")
    if mask.shape[0] != x.shape[0]:
        raise ValueError(f"mask has a batch of {mask.shape[0]}, expected that of x, {x.shape[0]}.")
    if not 1 <= mask.shape[1] <= MAX_ANATOMIES:
        raise ValueError(
            f"mask has {mask.shape[1]} anatomies (shape {list(mask.shape)}), expected 1 to {MAX_ANATOMIES}."
        )
    if mask.shape[2] == 0 or mask.shape[3] == 0:
        raise ValueError(f"mask has shape {list(mask.shape)}, expected at least one pixel.")
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, expected the device of x, {x.device}.")
    acc = accumulator(x.dtype)
    if mask.dtype == torch.uint8:
        m = mask.to(acc) / 255
    elif mask.dtype == torch.bool or mask.dtype.is_floating_point:
        m = mask.to(acc)
    else:
        raise TypeError(f"mask has dtype {mask.dtype}, expected a floating type, bool, or uint8 (255 = 1).")
    if m.shape[2:] != x.shape[2:]:
        m = F.interpolate(m, size=x.shape[2:], mode="bilinear", align_corners=False)
    if mask.dtype.is_floating_point:
        _check_range(m)
    return m.contiguous()


def _check_range(mask: Tensor) -> None:
    # Values are looked at where that costs next to nothing: not on a GPU (it would wait), not while compiling.
    if torch.compiler.is_compiling() or mask.device.type != "cpu" or mask.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(mask.detach()))
    if not (low >= 0 and high <= 1):
        found = "NaN" if low != low else f"values from {low:.4g} to {high:.4g}"
        raise ValueError(f"mask has {found}, expected values in [0, 1].")


def normalisation(
    x: Tensor,
    mask: Tensor,
    fusion: str,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> int:
    """Check fusion and the batch normalisation's tensors; returns the channels of Z."""
    if fusion not in ("mean", "concat"):
        raise ValueError(f"fusion is {fusion!r}, expected 'mean' or 'concat'.")
    channels = x.shape[1] * (mask.shape[1] if fusion == "concat" else 1)
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, t in named.items():
        if t is not None:
            _vector(name, t, channels, x)
    if (running_mean is None) != (running_var is None):
        given = "running_mean" if running_var is None else "running_var"
        raise ValueError(f"only {given} was given, expected running_mean and running_var together or neither.")
    return channels


def _vector(name: str, t: Tensor, size: int, x: Tensor) -> None:
    if not t.dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {t.dtype}, expected a floating type.")
    if t.dim() != 1 or t.shape[0] != size:
        raise ValueError(f"{name} has shape {list(t.shape)}, expected [{size}] for x of shape {list(x.shape)}.")
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device}, expected the device of x, {x.device}.")


def pooling(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check the 1x1 convolution of the probability maps."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is a {type(weight).__name__}, expected a tensor [K, C].")
    if not weight.dtype.is_floating_point:
        raise TypeError(f"weight has dtype {weight.dtype}, expected a floating type.")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight has shape {list(weight.shape)}, expected [K, {x.shape[1]}] for x of {x.shape[1]} channels."
        )
    if not 1 <= weight.shape[0] <= MAX_MAPS:
        raise ValueError(f"weight has K = {weight.shape[0]} maps, expected 1 to {MAX_MAPS}.")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, expected the device of x, {x.device}.")
    if bias is not None:
        _vector("bias", bias, weight.shape[0], x)
