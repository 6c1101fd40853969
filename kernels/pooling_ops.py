"""pwap as Triton ops: the contract of csrc/ops.cpp, in the namespace axnet_triton.

Launches (N > 0): pwap and gated_pwap 1, and 1 more where an image has several tiles; pwap_backward 2.
"""

from typing import Any

import torch
import triton
from axnet.kernels import pooling, pooling_backward, pooling_few
from axnet.kernels.launch import PROGRAMS, on_its_device, strides, vector, walkable
from axnet.kernels.register import register
from torch import Tensor
from torch.library import wrap_triton

from axnet.ops.layouts import accumulator, channels_last, empty_features

FEW_MAPS = 4  # up to here sums over channels and pixels cost less than products padded to 16 maps


def _few_tile(x: Tensor, images: int) -> tuple[dict[str, int], int, int]:
    """Tile of the kernels for few maps, strips of an image, pixels of a strip: functions of type and shape alone.

    All channels of as many pixels as leave a thread 64 numbers of 16 bits, 32 of float32.
    """
    last, pixels = channels_last(x), x.shape[2] * x.shape[3]
    block_c = triton.next_power_of_2(x.shape[1])
    held = min(max(32768 // x.element_size() // block_c, 1), 64)
    group = 8 if last else vector(x)
    if group == 1:  # every pixel has accumulators of its own
        held = max(held // 4, 1)
    group = min(group, held)
    tiles = triton.cdiv(pixels, held)
    wanted = min(triton.cdiv(2 * PROGRAMS, images), triton.cdiv(pixels, 64))  # shorter ones cost more to merge
    strip = triton.cdiv(tiles, wanted) * held
    tile = {"BLOCK_C": block_c, "LANES": held // group, "GROUP": group, "num_warps": 8 if block_c * held >= 4096 else 4}
    return tile, triton.cdiv(pixels, strip), strip


def _tile(x: Tensor, maps: int) -> dict[str, Any]:
    """Tile of the kernels for many maps: a function of type and shape alone.

    More pixels in a tile make fewer parts to merge, fewer make more programs; many maps need registers. Features of 16
    bits are exact in tf32; float32 goes in three products of tf32, float64 and other devices multiply as they are.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    block_s = 128 if pixels >= 65536 else 64 if pixels >= 4096 else 32
    nvidia = torch.version.hip is None and x.dtype != torch.float64
    tile: dict[str, Any] = {"PRECISION": "ieee" if not nvidia else "tf32x3" if x.dtype == torch.float32 else "tf32"}
    if maps <= 16 and x.dtype != torch.float64:
        return {**tile, "MAPS": 16, "BLOCK_C": 32, "BLOCK_S": block_s, "num_warps": 4}
    padded = max(16, triton.next_power_of_2(maps))
    return {**tile, "MAPS": padded, "BLOCK_C": 16, "BLOCK_S": min(block_s, 64), "num_warps": 8}


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
    few = k <= FEW_MAPS
    if few:
        tile, strips, strip = _few_tile(x, n)
        extent: tuple[int, ...] = (strips, strip)
    else:
        tile, extent = _tile(x, k), ()
        strips = triton.cdiv(s, tile["BLOCK_S"])
    numerator, part_norm = pooled, norm
    if strips > 1:
        numerator, part_norm = x.new_empty((n, strips, k, c), dtype=acc), x.new_empty((n, strips, 2, k), dtype=acc)
    gate, mask, norm_weight, norm_bias, mean, var = attention or (None,) * 6
    wrap_triton(pooling_few.pool_few_kernel if few else pooling.pool_kernel)[(n * strips,)](
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
        *extent,
        K=k,
        BIAS=bias is not None,
        A=0 if mask is None else mask.shape[1],
        NORM_WEIGHT=norm_weight is not None,
        NORM_BIAS=norm_bias is not None,
        EPS=eps,
        SINGLE=strips == 1,
        LAST=channels_last(x),
        **tile,
    )
    if strips > 1:
        block = 256
        wrap_triton(pooling.pool_combine_kernel)[(n * k * triton.cdiv(c, block),)](
            numerator, part_norm, pooled, norm, c, strips, K=k, BLOCK_C=block
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
    few = k <= FEW_MAPS
    if few:
        tile, strips, strip = _few_tile(x, n)
        extent: tuple[int, ...] = (strips, strip)
    else:
        tile, extent = _tile(x, k), ()
        strips = triton.cdiv(s, tile["BLOCK_S"])
    parts, acc = n * strips, accumulator(x.dtype)
    part_weight, part_bias = x.new_empty((parts, k, c), dtype=acc), x.new_empty((parts, k), dtype=acc)
    wrap_triton(pooling_few.pool_few_backward_kernel if few else pooling_backward.pool_backward_kernel)[(parts,)](
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
        *extent,
        K=k,
        PROB=grad_prob is not None,
        INPUT=input_grad,
        LAST=channels_last(x),
        **tile,
    )
    block_p, block_c = 128, 16
    wrap_triton(pooling_backward.weight_gradient_kernel)[(k * triton.cdiv(c, block_c),)](
        part_weight, part_bias, grad_weight, grad_bias, c, parts, K=k, BLOCK_P=block_p, BLOCK_C=block_c
    )
    return dx, grad_weight, grad_bias
