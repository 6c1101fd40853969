"""PWAP forward: a program holds a tile of pixels of one image and walks its channels twice.

    L = W X + b;  w_s = p_s / p_max,  p = sigmoid(L);  pooled = sum w X / sum w
    w = e^{min(L,0) - min(M,0)} (1 + e^{-|M|}) / (1 + e^{-|L|}),  M = the tile's largest logit

What is pooled is X or, with A anatomies, A3's Z under given statistics, made in the tile from X and never written.
The first walk makes the logits [MAPS, BLOCK_S] and reads X from memory; the second makes the numerators [MAPS, C] and
finds X in the cache. An image of one tile is finished there; else `pool_combine_kernel` merges the tiles in order.

Products are tl.dot with the maps padded to 16; axnet.kernels.pooling_few serves few maps. Features of 16 bits are exact
in tf32, so only the other factor is rounded; float32 takes three products of tf32 (PRECISION).
"""

import triton
import triton.language as tl
from axnet.kernels.blend import folded, gated
from axnet.kernels.tiles import load_mask_rows, tile_offsets


@triton.jit
def log_sigmoid(x):
    """Finite for every finite x."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def probability(logits, top):
    """The sigmoid p of the logits, and w relative to the logit `top`; both [MAPS, BLOCK_S]."""
    small = tl.exp(-tl.abs(logits))
    inverse = 1.0 / (1.0 + small)
    p = tl.where(logits < 0, small * inverse, inverse)
    rise = tl.exp(tl.minimum(logits, 0.0) - tl.minimum(top, 0.0))
    return p, rise * (1.0 + tl.exp(-tl.abs(top))) * inverse


@triton.jit
def load_features(
    base,
    c,
    s,
    valid,
    inside,
    gate_ptr,
    mask_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    mean_ptr,
    var_ptr,
    stride,
    C,
    S,
    acc: tl.constexpr,
    A: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
):
    """A tile [BLOCK_C, BLOCK_S] of X, or with A anatomies of Z rounded to X's type as if it had been written."""
    x = tl.load(base + tile_offsets(c, s, stride, LAST), mask=valid[:, None] & inside[None, :], other=0.0)
    features = x.to(acc)
    if A > 0:
        mean = tl.load(mean_ptr + c, mask=valid, other=0.0).to(acc)
        var = tl.load(var_ptr + c, mask=valid, other=1.0).to(acc)
        fold = folded(
            gate_ptr, norm_weight_ptr, norm_bias_ptr, mean, var, c, valid, C, acc, A, NORM_WEIGHT, NORM_BIAS, EPS
        )
        z = gated(features, fold, load_mask_rows(mask_ptr, s, inside, S, acc, A), A)
        features = z.to(x.dtype).to(acc)
    return features


@triton.jit
def pool_kernel(
    x_ptr,  # [N, C, S]
    weight_ptr,  # [K, C]
    bias_ptr,  # [K]
    numerator_ptr,  # [N, tiles, K, C]; pooled [N, K, C] where an image is one tile
    norm_ptr,  # [N, tiles, 2, K]: largest logit, sum of w
    prob_ptr,  # [N, K, S]
    logits_ptr,  # [N, K, S]
    gate_ptr,  # [N, A, C]; this and the rest of A3's where A > 0
    mask_ptr,  # [N, A, S]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,
    mean_ptr,
    var_ptr,
    image_stride,
    stride,
    C,
    S,
    K: tl.constexpr,
    MAPS: tl.constexpr,
    BIAS: tl.constexpr,
    A: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    EPS: tl.constexpr,
    SINGLE: tl.constexpr,
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
    base = x_ptr + n * image_stride
    gate = gate_ptr + n * A * C
    mask = mask_ptr + n * A * S

    logits = tl.zeros([MAPS, BLOCK_S], acc)
    for first in tl.range(0, C, BLOCK_C, num_stages=3):
        c = first + tl.arange(0, BLOCK_C)
        valid = c < C
        x = load_features(
            base,
            c,
            s,
            valid,
            inside,
            gate,
            mask,
            norm_weight_ptr,
            norm_bias_ptr,
            mean_ptr,
            var_ptr,
            stride,
            C,
            S,
            acc,
            A,
            NORM_WEIGHT,
            NORM_BIAS,
            EPS,
            LAST,
        )
        weight = tl.load(weight_ptr + k[:, None] * C + c[None, :], mask=wanted[:, None] & valid[None, :], other=0.0).to(
            acc
        )  # [MAPS, BLOCK_C]
        logits = tl.dot(weight, x, logits, input_precision=PRECISION)
    if BIAS:
        logits += tl.load(bias_ptr + k, mask=wanted, other=0.0).to(acc)[:, None]

    top = tl.max(tl.where(inside[None, :], logits, float("-inf")), 1)  # [MAPS]
    top = tl.where(top - top == 0, top, 0.0)  # inf or NaN among the logits: let it show in the sums
    p, w = probability(logits, top[:, None])
    w = tl.where(inside[None, :], w, 0.0)
    mass = tl.sum(w, 1)
    out = (n * K + k[:, None]) * S + s[None, :]
    tl.store(prob_ptr + out, p, mask=both)
    tl.store(logits_ptr + out, logits, mask=both)
    tl.store(norm_ptr + task * 2 * K + k, top, mask=wanted)
    tl.store(norm_ptr + task * 2 * K + K + k, mass, mask=wanted)
    if SINGLE:
        w = w / mass[:, None]

    for first in tl.range(0, C, BLOCK_C, num_stages=3):
        c = first + tl.arange(0, BLOCK_C)
        valid = c < C
        x = load_features(
            base,
            c,
            s,
            valid,
            inside,
            gate,
            mask,
            norm_weight_ptr,
            norm_bias_ptr,
            mean_ptr,
            var_ptr,
            stride,
            C,
            S,
            acc,
            A,
            NORM_WEIGHT,
            NORM_BIAS,
            EPS,
            LAST,
        )
        numerator = tl.dot(w, tl.trans(x), input_precision=PRECISION)  # [MAPS, BLOCK_C]
        where = (task * K + k[:, None]) * C + c[None, :]
        tl.store(numerator_ptr + where, numerator, mask=wanted[:, None] & valid[None, :])


@triton.jit
def pool_combine_kernel(
    numerator_ptr,  # [N, tiles, K, C]
    part_norm_ptr,  # [N, tiles, 2, K]
    pooled_ptr,  # [N, K, C]
    norm_ptr,  # [N, 2, K]
    C,
    tiles,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the tiles of an image in order. Grid: (image, map, channel block)."""
    channel_blocks = tl.cdiv(C, BLOCK_C)
    c = (tl.program_id(0) % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(0) // channel_blocks % K
    n = tl.cast(tl.program_id(0) // channel_blocks // K, tl.int64)
    valid = c < C
    part = part_norm_ptr + n * tiles * 2 * K + k
    top = tl.load(part)
    for i in range(1, tiles):
        top = tl.maximum(top, tl.load(part + i * 2 * K))
    reference = log_sigmoid(top)
    mass = tl.zeros_like(top)
    total = tl.zeros([BLOCK_C], top.dtype)
    for i in range(0, tiles):
        scale = tl.exp(log_sigmoid(tl.load(part + i * 2 * K)) - reference)
        mass += scale * tl.load(part + i * 2 * K + K)
        total += scale * tl.load(numerator_ptr + ((n * tiles + i) * K + k) * C + c, mask=valid, other=0.0)
    tl.store(pooled_ptr + (n * K + k) * C + c, total / mass, mask=valid)
    if tl.program_id(0) % channel_blocks == 0:
        tl.store(norm_ptr + n * 2 * K + k, top)
        tl.store(norm_ptr + n * 2 * K + K + k, mass)
