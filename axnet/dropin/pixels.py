"""1x1 convolutions of descriptors [N, C, 1, 1], as gates have them: products that read a weight once for all images."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from axnet.backends import transformed
from axnet.nn.grouped import LEAST, grouped_linear


def of_one_pixel(x: Tensor) -> AbstractContextManager[Any]:
    """Within this block, without gradients, 1x1 convolutions of one pixel are products; x: of the kind that they take.

    The modules around them are called as they are, with their hooks. On a CPU torch convolves image by image and reads
    the weights again for each; on other devices, and where others look on, its convolution stays.
    """
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.is_grad_enabled()
    if not plain or torch.compiler.is_compiling() or transformed() or torch.is_autocast_enabled("cpu"):
        return nullcontext()
    return _Products()


class _Products(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and _is_product(*args):
            return _product(*args[:3])[..., None, None]
        return func(*args, **(kwargs or {}))


def _is_product(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    alike = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    pixels = x.dim() == 4 and x.shape[2:] == weight.shape[2:] == (1, 1) and x.shape[0] > 0
    return pixels and alike and groups == 1 and tuple(padding) == (0, 0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, I, 1, 1] times weight [O, I, 1, 1] plus bias [O]: [N, O]."""
    x, weight = x.flatten(1), weight.flatten(1)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    if x.shape[0] < LEAST:
        return torch.addmm(bias[:, None], weight, x.t()).t()
    return grouped_linear(x[None], weight[None], bias[None])[0]
