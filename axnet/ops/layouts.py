"""Layouts and types that the compiled ops give their outputs, for shape inference."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type of statistics: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pixel_step(x: Tensor) -> int:
    """The step between pixels, or 0 where the pixels of an image do not lie at equal steps."""
    height, width = x.shape[2], x.shape[3]
    if height > 1 and width > 1 and x.stride(2) != width * x.stride(3):
        return 0
    return x.stride(3) if width > 1 else x.stride(2) if height > 1 else 1


def channels_last(x: Tensor) -> bool:
    """Whether the kernels walk x [N, C, H, W] as rows of channels (csrc/cpu/common.h has the same rule)."""
    step = pixel_step(x)
    return x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and step not in (0, 1) and x.stride(1) == 1


def empty_features(x: Tensor, images: int, channels: int) -> Tensor:
    """An uninitialised [images, channels, H, W] in x's type and layout."""
    memory_format = torch.channels_last if channels_last(x) else torch.contiguous_format
    return torch.empty((images, channels, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=memory_format)


def in_layout_of(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient as the kernels walk x: itself, or a copy that both backward passes then share."""
    last = channels_last(x)
    if channels_last(grad) == last and pixel_step(grad) != 0:
        return grad
    return grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
