"""A3, forward pass 2 and backward pass 1.

    apply   Z = gamma (X G - mean) / sqrt(var + eps) + beta,  G = b + sum_a w_a m_a            one read, one write
    sums    e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'                     two reads

b = 1 - mean_a g_a and w_a = g_a / B for each output block of B anatomies: "mean" has one block of A, "concat" A blocks
of one. A program walks a strip of the pixels of BLOCK_C channels for one output block; the blocks of one strip are
neighbours and share X in the cache. apply folds all coefficients of a channel into 2 + B before it begins. sums has an
accumulator per channel and lane (axnet.kernels.tiles) for each sum; the strips are added by coefficients_kernel.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import load_mask_rows, load_masks, load_rows, load_tile, madd, repeat, tile_offsets


@triton.jit
def folded(
    gate_ptr,
    weight_ptr,
    bias_ptr,
    mean,
    var,
    c,
    valid,
    C,
    acc: tl.constexpr,
    B: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    EPS: tl.constexpr,
):
    """Columns k, v_a, h [BLOCK_C, 1] of Z = X (k + sum v_a m_a) + h; pointers at the image and the output block."""
    scale = 1.0 / tl.sqrt(var + EPS)
    if WEIGHT:
        scale *= tl.load(weight_ptr + c, mask=valid, other=0.0).to(acc)
    offset = -mean * scale
    if BIAS:
        offset += tl.load(bias_ptr + c, mask=valid, other=0.0).to(acc)
    w = load_rows(gate_ptr, c, valid, C, acc, B)
    total = tl.zeros_like(w[0])
    out = ()
    for a in tl.static_range(B):
        total += w[a]
        out = out + (w[a] * (1.0 / B) * scale[:, None],)
    return ((1.0 - total * (1.0 / B)) * scale[:, None],) + out + (offset[:, None],)


@triton.jit
def gated(x, fold, m, B: tl.constexpr):
    """Z of a tile x by its folded coefficients and masks."""
    gate = fold[0]
    for a in tl.static_range(B):
        gate = madd(fold[1 + a], m[a], gate)
    return madd(x, gate, fold[1 + B])


@triton.jit
def apply_kernel(
    x_ptr,  # [N, C, S]
    z_ptr,  # [N, blocks C, S]
    mask_ptr,  # [N, A, S]
    gate_ptr,  # [N, A, C]; this and the next four of any floating type
    weight_ptr,  # [blocks C]
    bias_ptr,
    mean_ptr,  # [blocks C]: what normalises
    var_ptr,
    kept_mean_ptr,  # [blocks C]: a copy of it
    kept_var_ptr,
    x_image,
    x_stride,
    z_image,
    z_stride,
    C,
    S,
    strips,
    strip_pixels,
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid: (image, channel block, strip, output block)."""
    B: tl.constexpr = A // BLOCKS
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    task = tl.program_id(0)
    o = task % BLOCKS
    task = task // BLOCKS
    strip = task % strips
    task = task // strips
    channel_blocks = tl.cdiv(C, BLOCK_C)
    n = tl.cast(task // channel_blocks, tl.int64)
    c = (task % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = c < C
    channel = o * C + c
    mean = tl.load(mean_ptr + channel, mask=valid, other=0.0).to(acc)
    var = tl.load(var_ptr + channel, mask=valid, other=1.0).to(acc)
    if KEEP:
        if (n == 0) & (strip == 0):
            tl.store(kept_mean_ptr + channel, mean, mask=valid)
            tl.store(kept_var_ptr + channel, var, mask=valid)
    gate = gate_ptr + (n * A + o) * C
    fold = folded(gate, weight_ptr + o * C, bias_ptr + o * C, mean, var, c, valid, C, acc, B, WEIGHT, BIAS, EPS)
    masks = mask_ptr + (n * A + o) * S
    begin = strip * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    for first in tl.range(begin, end, BLOCK_S, num_stages=3):
        s = first + tl.arange(0, BLOCK_S)
        inside = s < end
        both = valid[:, None] & inside[None, :]
        x = tl.load(x_ptr + n * x_image + tile_offsets(c, s, x_stride, LAST), mask=both, other=0.0).to(acc)
        z = gated(x, fold, load_mask_rows(masks, s, inside, S, acc, B), B)
        tl.store(z_ptr + n * z_image + tile_offsets(channel, s, z_stride, LAST), z, mask=both)


@triton.jit
def sums_kernel(
    x_ptr,  # [N, C, S]
    d_ptr,  # [N, blocks C, S]
    mask_ptr,  # [N, A, S]
    saved_ptr,  # [N, blocks, saved_rows, C]: row 0 is the shift
    sums_ptr,  # [N, strips, blocks, 2 + 2B, C]
    x_image,
    x_stride,
    d_image,
    d_stride,
    C,
    S,
    strips,
    strip_pixels,
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Grid: (image, channel block, strip, output block)."""
    B: tl.constexpr = A // BLOCKS
    SUMS: tl.constexpr = 2 + 2 * B
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    task = tl.program_id(0)
    o = task % BLOCKS
    task = task // BLOCKS
    strip = task % strips
    task = task // strips
    channel_blocks = tl.cdiv(C, BLOCK_C)
    n = tl.cast(task // channel_blocks, tl.int64)
    c = (task % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = c < C
    begin = strip * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    shift = tl.load(saved_ptr + (n * BLOCKS + o) * (4 + 3 * B) * C + c, mask=valid, other=0.0)[:, None]
    masks = mask_ptr + (n * A + o) * S
    zero = tl.zeros([BLOCK_C, LANES], acc)
    sums = repeat(zero, SUMS)  # e0, e1, h_a, f_a
    for first in tl.range(begin, end, LANES * GROUP, num_stages=3):
        xs = load_tile(x_ptr + n * x_image, c, valid, first, end, x_stride, acc, LAST, LANES, GROUP, EVEN)
        ds = load_tile(d_ptr + n * d_image, o * C + c, valid, first, end, d_stride, acc, LAST, LANES, GROUP, EVEN)
        ms = load_masks(masks, first, end, S, acc, LANES, GROUP, EVEN, B)
        for g in tl.static_range(GROUP):
            d = ds[g]
            product = d * (xs[g] - shift)  # outside the strip d = 0
            with_d = ()
            with_x = ()
            for a in tl.static_range(B):
                with_d = with_d + (madd(d, ms[a * GROUP + g], sums[2 + a]),)
                with_x = with_x + (madd(product, ms[a * GROUP + g], sums[2 + B + a]),)
            sums = (sums[0] + d, sums[1] + product) + with_d + with_x
    out = sums_ptr + ((n * strips + strip) * BLOCKS + o) * SUMS * C + c
    for k in tl.static_range(SUMS):
        tl.store(out + k * C, tl.sum(sums[k], 1), mask=valid)
