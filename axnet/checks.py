"""Argument checks of the public functions: one sentence that names the argument, what came, what is accepted."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.backends import transformed
from axnet.ops.layouts import accumulator

FEATURE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_ANATOMIES = 16
MAX_MAPS = 64
ROUNDING = 2.0**-7  # a step of bfloat16 at 1: what resizing in any floating type may exceed [0, 1] by

_looked_at: set[torch.device] = set()  # GPUs whose first uint8 mask was looked at
_said = False


def features(x: Tensor) -> None:
    """Check x: [N, C, H, W] of a floating type with at least one channel and one pixel."""
    if not isinstance(x, Tensor):
        _refuse_proxy(x)
        raise TypeError(f"x is a {type(x).__name__}, expected a tensor [N, C, H, W].")
    if x.layout is not torch.strided or x.is_nested:
        raise TypeError(f"x is a {'nested' if x.is_nested else x.layout} tensor, expected a dense one [N, C, H, W].")
    if x.dtype not in FEATURE_TYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected float32, float64, bfloat16 or float16.")
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(f"x has shape {list(shape)}, expected four dimensions [N, C, H, W].")
    if shape[1] == 0 or shape[2] == 0 or shape[3] == 0:
        raise ValueError(f"x has shape {list(shape)}, expected at least one channel and one pixel.")


def _refuse_proxy(x: object) -> None:
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            "x is a torch.fx.Proxy, expected a tensor: axnet's functions cannot be traced by torch.fx.symbolic_trace; "
            "its modules are traced as single nodes of a model that holds them, or use torch.export."
        )


def prepared_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as the ops take it: [N, A, H, W] of the accumulation type, contiguous; raises where it cannot be."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}, expected a tensor [N, A, H, W].")
    if mask.layout is not torch.strided or mask.is_nested:
        layout = "nested" if mask.is_nested else mask.layout
        raise TypeError(f"mask is a {layout} tensor, expected a dense one [N, A, H, W].")
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
    acc, dtype = accumulator(x.dtype), mask.dtype
    floating = dtype.is_floating_point
    if dtype == torch.uint8:
        _warn_of_ones(mask)
        m = mask.to(acc) / 255
    elif floating or dtype == torch.bool:
        m = mask if dtype == acc else mask.to(acc)
    else:
        raise TypeError(f"mask has dtype {dtype}, expected a floating type, bool, or uint8 (255 = 1).")
    if m.shape[2:] != x.shape[2:]:
        m = F.interpolate(m, size=x.shape[2:], mode="bilinear", align_corners=False)
    if floating:
        _check_range(m)
    return m.contiguous()


def _has_values(t: Tensor) -> bool:
    """Whether Python may look at values now: not while compiling, under a transform, or of a fake tensor."""
    if torch.compiler.is_compiling() or transformed() or t.numel() == 0:
        return False
    return type(t) is Tensor or not hasattr(t, "fake_mode")


def _check_range(mask: Tensor) -> None:
    if found := beyond_one(mask):
        raise ValueError(f"mask has {found}, expected values in [0, 1].")


def beyond_one(mask: Tensor) -> str | None:
    """What a mask has outside of [0, 1], in words; looked at on a CPU alone: a GPU would wait."""
    if mask.device.type != "cpu" or not _has_values(mask):
        return None
    low, high = torch.aminmax(mask if not mask.requires_grad else mask.detach())
    if low.item() >= -1e-5 and high.item() <= 1 + ROUNDING:
        return None
    return "NaN" if low.isnan() else f"values from {low.item():.6g} to {high.item():.6g}"


def _warn_of_ones(mask: Tensor) -> None:
    """Say once that a uint8 mask of 0 and 1 counts as nearly nothing, the most common mistake with masks.

    Not an error: the 8-bit probabilities of a film without the organ may well end at 1. On a GPU the first mask alone
    is looked at, because looking waits for the GPU (and ends the capture of a graph): who makes the mistake makes it
    with every mask.
    """
    global _said
    device = mask.device
    if _said or not _has_values(mask) or device in _looked_at or device.type == "meta":
        return
    if device.type != "cpu":
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        _looked_at.add(device)
    if mask.max().item() == 1:
        _said = True
        warnings.warn(
            "mask is uint8 and its largest value is 1, which counts as 1/255; where 1 means the whole organ, pass a "
            "bool mask (mask.bool()) or one of 0 and 255. This is said once.",
            stacklevel=4,
        )


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
    if weight is not None:
        _vector("weight", weight, channels, x)
    if bias is not None:
        _vector("bias", bias, channels, x)
    if running_mean is not None:
        _vector("running_mean", running_mean, channels, x)
    if running_var is not None:
        _vector("running_var", running_var, channels, x)
    if (running_mean is None) != (running_var is None):
        given = "running_mean" if running_var is None else "running_var"
        raise ValueError(f"only {given} was given, expected running_mean and running_var together or neither.")
    return channels


def _vector(name: str, t: Tensor, size: int, x: Tensor) -> None:
    if t.shape == (size,) and t.dtype in FEATURE_TYPES and t.device == x.device:
        return
    if not t.dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {t.dtype}, expected a floating type.")
    if t.dim() != 1 or t.shape[0] != size:
        raise ValueError(f"{name} has shape {list(t.shape)}, expected [{size}] for x of shape {list(x.shape)}.")
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device}, expected the device of x, {x.device}.")
    raise TypeError(f"{name} has dtype {t.dtype}, expected float32, float64, bfloat16 or float16.")


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
