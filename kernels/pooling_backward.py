"""PWAP backward: as forward, a program holds a tile of pixels of one image and walks its channels twice.

    share = w / sum w;  a = <dpooled, X>;  dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p)
    dX = sum_k share_k dpooled_k + W_k dL_k;  dW = sum dL X;  db = sum dL

The first walk makes a [MAPS, BLOCK_S] and reads X from memory; the second finds X in the cache, writes dX and the
tile's part of dW [K, C]. `weight_gradient_kernel` adds the parts of all tiles in a fixed order. Products as in
axnet.kernels.pooling.
"""

import triton
import triton.language as tl
from axnet.kernels.pooling import probability
from axnet.kernels.tiles import tile_offsets


@triton.jit
def pool_backward_kernel(
    grad_pooled_ptr,  # [N, K, C]
    grad_prob_ptr,  # [N, K, S]
    x_ptr,  # [N, C, S]
    weight_ptr,  # [K, C]
    logits_ptr,  # [N, K, S]
    norm_ptr,  # [N, 2, K]
    pooled_ptr,  # [N, K, C]
    dx_ptr,  # [N, C, S]
    part_weight_ptr,  # [N tiles, K, C]
    part_bias_ptr,  # [N tiles, K]
    x_image,
    x_stride,
    dx_image,
    dx_stride,
    C,
    S,
    K: tl.constexpr,
    MAPS: tl.constexpr,
    PROB: tl.constexpr,
    INPUT: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid: (image, tile)."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    tiles = tl.cdiv(S, BLOCK_S)
    task = tl.cast(tl.program_id(0), tl.int64)
    n = task // tiles
    s = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    k = tl.arange(0, MAPS)
    inside = s < S
    wanted = k < K
    both = wanted[:, None] & inside[None, :]
    base = x_ptr + n * x_image
    maps = (n * K + k[:, None]) * C

    a = tl.zeros([MAPS, BLOCK_S], acc)
    mean = tl.zeros([MAPS, BLOCK_C], acc)
    for first in tl.range(0, C, BLOCK_C, num_stages=3):
        c = first + tl.arange(0, BLOCK_C)
        valid = c < C
        x = tl.load(base + tile_offsets(c, s, x_stride, LAST), mask=valid[:, None] & inside[None, :], other=0.0).to(acc)
        there = wanted[:, None] & valid[None, :]
        grad = tl.load(grad_pooled_ptr + maps + c[None, :], mask=there, other=0.0).to(acc)  # [MAPS, BLOCK_C]
        mean += grad * tl.load(pooled_ptr + maps + c[None, :], mask=there, other=0.0).to(acc)
        a = tl.dot(grad, x, a, input_precision=PRECISION)

    place = (n * K + k[:, None]) * S + s[None, :]
    logits = tl.load(logits_ptr + place, mask=both, other=0.0)
    top = tl.load(norm_ptr + n * 2 * K + k, mask=wanted, other=0.0)
    mass = tl.load(norm_ptr + n * 2 * K + K + k, mask=wanted, other=1.0)
    p, w = probability(logits, top[:, None])
    share = tl.where(both, w / mass[:, None], 0.0)
    dl = (a - tl.sum(mean, 1)[:, None]) * share * (1.0 - p)
    if PROB:
        dl += tl.load(grad_prob_ptr + place, mask=both, other=0.0).to(acc) * p * (1.0 - p)
    dl = tl.where(both, dl, 0.0)
    tl.store(part_bias_ptr + task * K + k, tl.sum(dl, 1), mask=wanted)

    for first in tl.range(0, C, BLOCK_C, num_stages=3):
        c = first + tl.arange(0, BLOCK_C)
        valid = c < C
        there = wanted[:, None] & valid[None, :]
        tile = valid[:, None] & inside[None, :]
        x = tl.load(base + tile_offsets(c, s, x_stride, LAST), mask=tile, other=0.0).to(acc)
        part = tl.dot(dl, tl.trans(x), input_precision=PRECISION)  # [MAPS, BLOCK_C]
        tl.store(part_weight_ptr + (task * K + k[:, None]) * C + c[None, :], part, mask=there)
        if INPUT:
            grad = tl.load(grad_pooled_ptr + maps + c[None, :], mask=there, other=0.0).to(acc)
            weight = tl.load(weight_ptr + k[:, None] * C + c[None, :], mask=there, other=0.0).to(acc)
            dx = tl.dot(tl.trans(grad), share, input_precision=PRECISION)
            dx = tl.dot(tl.trans(weight), dl, dx, input_precision=PRECISION)
            tl.store(dx_ptr + n * dx_image + tile_offsets(c, s, dx_stride, LAST), dx, mask=tile)


@triton.jit
def weight_gradient_kernel(
    part_weight_ptr,  # [parts, K, C]
    part_bias_ptr,  # [parts, K]
    grad_weight_ptr,  # [K, C]
    grad_bias_ptr,  # [K]
    C,
    parts,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add the tiles' parts, BLOCK_P at a time. Grid: (map, channel block)."""
    acc: tl.constexpr = part_weight_ptr.dtype.element_ty
    channel_blocks = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0) % channel_blocks
    k = tl.program_id(0) // channel_blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], acc)
    bias = tl.zeros([BLOCK_P], acc)
    for first in range(0, parts, BLOCK_P):
        i = first + tl.arange(0, BLOCK_P).to(tl.int64)
        there = (i < parts)[:, None] & (c < C)[None, :]
        total += tl.load(part_weight_ptr + (i[:, None] * K + k) * C + c[None, :], mask=there, other=0.0)
        if block == 0:
            bias += tl.load(part_bias_ptr + i * K + k, mask=i < parts, other=0.0)
    tl.store(grad_weight_ptr + k * C + c, tl.sum(total, 0), mask=c < C)
    if block == 0:
        tl.store(grad_bias_ptr + k, tl.sum(bias, 0))
