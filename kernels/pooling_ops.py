"""pwap as Triton ops: the contract of csrc/ops.cpp, in the namespace axnet_triton.

Launches (N > 0): pwap and gated_pwap 1, and 1 more where an image has several tiles; pwap_backward 2.
"""

from typing import Any

import torch
import triton
from axnet.kernels import pooling, pooling_backward
from axnet.kernels.launch import on_its_device, strides, walkable
from axnet.kernels.register import register
from torch import Tensor
from torch.library import wrap_triton

from axnet.ops.layouts import accumulator, channels_last, empty_features

FEW_MAPS = 4  # up to here the padding of tl.dot to 16 maps costs more than its products save


def _tile(x: Tensor, maps: int) -> dict[str, Any]:
    """How the products are made, and the sides of the tile: a function of type and shape alone.

    More pixels in a tile make fewer parts to merge, fewer make more programs; many maps need registers.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    block_s = 128 if pixels >= 65536 else 64 if pixels >= 4096 else 32
    half = x.dtype in (torch.bfloat16, torch.float16)
    tile = {"DOT": True, "PRECISION": "tf32" if half and torch.version.hip is None else "ieee"}
    if maps <= FEW_MAPS or x.dtype == torch.float64:
        padded = triton.next_power_of_2(maps)
        sides = {"MAPS": padded, "BLOCK_C": max(1, 32 // padded), "BLOCK_S": min(block_s, 64)}
        return {**tile, **sides, "DOT": False, "num_warps": 4}
    if maps <= 16:
        return {**tile, "MAPS": 16, "BLOCK_C": 32, "BLOCK_S": block_s, "num_warps": 4}
    return {
        **tile,
        "MAPS": triton.next_power_of_2(maps),
        "BLOCK_C": 16,
        "BLOCK_S": min(block_s, 64),
        "num_warps": 8,
    }


def _pool(
    x: Tensor, weight: Tensor, bias: Tensor | None, attention: tuple[Tensor | None, ...] = (), eps: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pwap of X, or of Z = A3 of X; attention: gate, mask, and weight, bias, mean and variance of its normalisation."""
    x = walkable(x)
    n, c, h, w = x.shape
    k, s, acc = weight.shape[0], h * w, accumulator(x.dtype)
    pooled, prob = x.new_empty((n, k, c)), x.new_empty((n, k, h, w))
    logits, norm = x.new_empty((n, k, h, w), dtype=acc), x.new_empty((n, 2, k), dtype=acc)
    if n == 0:
        return pooled, prob, logits, norm
    tile = _tile(x, k)
    tiles = triton.cdiv(s, tile["BLOCK_S"])
    numerator, part_norm = pooled, norm
    if tiles > 1:
        numerator, part_norm = x.new_empty((n, tiles, k, c), dtype=acc), x.new_empty((n, tiles, 2, k), dtype=acc)
    gate, mask, norm_weight, norm_bias, mean, var = attention or (None,) * 6
    wrap_triton(pooling.pool_kernel)[(n * tiles,)](
        x,
        weight,
        weight if bias is None else bias,
        numerator,
        part_norm,
        prob,
        logits,
        *(weight if t is None else t for t in (gate, mask, norm_weight, norm_bias, mean, var)),
        *strides(x),
        c,
        s,
        K=k,
        BIAS=bias is not None,
        A=0 if mask is None else mask.shape[1],
        NORM_WEIGHT=norm_weight is not None,
        NORM_BIAS=norm_bias is not None,
        EPS=eps,
        SINGLE=tiles == 1,
        LAST=channels_last(x),
        **tile,
    )
    if tiles > 1:
        block = 256
        wrap_triton(pooling.pool_combine_kernel)[(n * k * triton.cdiv(c, block),)](
            numerator, part_norm, pooled, norm, c, tiles, K=k, BLOCK_C=block
        )
    return pooled, prob, logits, norm


@register("pwap")
@on_its_device
def pwap(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probability-weighted average pooling in one read of X."""
    return _pool(x, weight, bias)


@register("gated_pwap")
@on_its_device
def gated_pwap(
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """gate_norm under given statistics and pwap of its result, which is never written."""
    pooled, prob, _, _ = _pool(x, weight, bias, (gate.contiguous(), mask, norm_weight, norm_bias, mean, var), eps)
    return pooled, prob


@register("pwap_backward")
@on_its_device
def pwap_backward(
    grad_pooled: Tensor,
    grad_prob: Tensor | None,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    norm: Tensor,
    pooled: Tensor,
    input_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One read of X and one write of its gradient."""
    x = walkable(x)
    n, c, h, w = x.shape
    k, s = weight.shape[0], h * w
    dx = empty_features(x, n if input_grad else 0, c)
    grad_weight, grad_bias = torch.empty_like(weight), weight.new_empty((k,))
    if n == 0:
        return dx, grad_weight.zero_(), grad_bias.zero_()
    tile = _tile(x, k)
    parts = n * triton.cdiv(s, tile["BLOCK_S"])
    part_weight, part_bias = weight.new_empty((parts, k, c)), weight.new_empty((parts, k))
    wrap_triton(pooling_backward.pool_backward_kernel)[(parts,)](
        grad_pooled.contiguous(),
        weight if grad_prob is None else grad_prob.contiguous(),
        x,
        weight,
        logits,
        norm,
        pooled,
        dx,
        part_weight,
        part_bias,
        *strides(x),
        *strides(dx),
        c,
        s,
        K=k,
        PROB=grad_prob is not None,
        INPUT=input_grad,
        LAST=channels_last(x),
        **tile,
    )
    block_p, block_c = 32, 64
    wrap_triton(pooling_backward.weight_gradient_kernel)[(k * triton.cdiv(c, block_c),)](
        part_weight, part_bias, grad_weight, grad_bias, c, parts, K=k, BLOCK_P=block_p, BLOCK_C=block_c
    )
    return dx, grad_weight, grad_bias
