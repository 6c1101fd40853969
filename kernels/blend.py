"""A3, forward pass 2 and backward pass 1.

    apply   Z = gamma (X G - mean) / sqrt(var + eps) + beta,  G = b + sum_a w_a m_a            one read, one write
    sums    e0 = sum D, e1 = sum D x', h_a = sum D m_a, f_a = sum D m_a x'                     two reads

b = 1 - mean_a g_a and w_a = g_a / B for each output block of B anatomies: "mean" has one block of A, "concat" A blocks
of one. apply: a program holds a tile [BLOCK_C, BLOCK_S] of one image and writes it for every block, from one read; no
tile can change a bit of it, so it may be tuned. sums: a program walks a strip of pixels with an accumulator of the
tile's size for each sum; the strips are added by coefficients_kernel.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import load_masks, load_rows, repeat, tile_offsets


@triton.jit
def gated_norm(
    x,
    gate_ptr,
    mask_ptr,
    weight_ptr,
    bias_ptr,
    mean,
    var,
    c,
    s,
    valid,
    inside,
    C,
    S,
    B: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    EPS: tl.constexpr,
):
    """Z of a tile x [BLOCK_C, BLOCK_S]; pointers at the image and the output block, mean and var [BLOCK_C]."""
    scale = 1.0 / tl.sqrt(var + EPS)
    if WEIGHT:
        scale *= tl.load(weight_ptr + c, mask=valid, other=0.0)
    w = load_rows(gate_ptr, c, valid, C, B)
    m = load_masks(mask_ptr, s, inside, S, B)
    total = tl.zeros_like(w[0])
    for a in tl.static_range(B):
        total += w[a]
    gate = 1.0 - total / B + tl.zeros_like(x)
    for a in tl.static_range(B):
        gate += w[a] / B * m[a]
    z = (x * gate - mean[:, None]) * scale[:, None]
    if BIAS:
        z += tl.load(bias_ptr + c, mask=valid, other=0.0)[:, None]
    return z


@triton.jit
def apply_kernel(
    x_ptr,  # [N, C, S]
    z_ptr,  # [N, blocks C, S]
    mask_ptr,  # [N, A, S]
    gate_ptr,  # [N, A, C]
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
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    FAST: tl.constexpr,
    SLOW: tl.constexpr,
):
    """Grid: (image, channel block, pixel block); FAST is the tile's side along the adjacent axis."""
    BLOCK_C: tl.constexpr = FAST if LAST else SLOW
    BLOCK_S: tl.constexpr = SLOW if LAST else FAST
    B: tl.constexpr = A // BLOCKS
    acc: tl.constexpr = mask_ptr.dtype.element_ty
    pixel_blocks = tl.cdiv(S, BLOCK_S)
    channel_blocks = tl.cdiv(C, BLOCK_C)
    task = tl.program_id(0)
    n = tl.cast(task // pixel_blocks // channel_blocks, tl.int64)
    c = (task // pixel_blocks % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = (task % pixel_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    valid = c < C
    inside = s < S
    both = valid[:, None] & inside[None, :]
    x = tl.load(x_ptr + n * x_image + tile_offsets(c, s, x_stride, LAST), mask=both, other=0.0).to(acc)
    for o in tl.static_range(BLOCKS):
        channel = o * C + c
        mean = tl.load(mean_ptr + channel, mask=valid, other=0.0)
        var = tl.load(var_ptr + channel, mask=valid, other=1.0)
        if KEEP:
            if (n == 0) & (task % pixel_blocks == 0):
                tl.store(kept_mean_ptr + channel, mean, mask=valid)
                tl.store(kept_var_ptr + channel, var, mask=valid)
        z = gated_norm(
            x,
            gate_ptr + (n * A + o) * C,
            mask_ptr + (n * A + o) * S,
            weight_ptr + o * C,
            bias_ptr + o * C,
            mean,
            var,
            c,
            s,
            valid,
            inside,
            C,
            S,
            B,
            WEIGHT,
            BIAS,
            EPS,
        )
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
    BLOCK_S: tl.constexpr,
):
    """Grid: (image, channel block, strip, output block); the output blocks of one strip share X in the cache."""
    B: tl.constexpr = A // BLOCKS
    SUMS: tl.constexpr = 2 + 2 * B
    acc: tl.constexpr = mask_ptr.dtype.element_ty
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
    e0 = tl.zeros([BLOCK_C, BLOCK_S], acc)
    e1 = tl.zeros([BLOCK_C, BLOCK_S], acc)
    h = repeat(e0, B)
    f = repeat(e0, B)
    for first in tl.range(begin, end, BLOCK_S, num_stages=3):
        s = first + tl.arange(0, BLOCK_S)
        inside = s < end
        both = valid[:, None] & inside[None, :]
        x = tl.load(x_ptr + n * x_image + tile_offsets(c, s, x_stride, LAST), mask=both, other=0.0).to(acc)
        d = tl.load(d_ptr + n * d_image + tile_offsets(o * C + c, s, d_stride, LAST), mask=both, other=0.0).to(acc)
        m = load_masks(mask_ptr + (n * A + o) * S, s, inside, S, B)
        centred = x - shift  # outside the strip d = 0
        product = d * centred
        e0 += d
        e1 += product
        next_h = ()
        next_f = ()
        for a in tl.static_range(B):
            next_h = next_h + (h[a] + d * m[a],)
            next_f = next_f + (f[a] + product * m[a],)
        h = next_h
        f = next_f
    out = sums_ptr + ((n * strips + strip) * BLOCKS + o) * SUMS * C + c
    tl.store(out, tl.sum(e0, 1), mask=valid)
    tl.store(out + C, tl.sum(e1, 1), mask=valid)
    for a in tl.static_range(B):
        tl.store(out + (2 + a) * C, tl.sum(h[a], 1), mask=valid)
        tl.store(out + (2 + B + a) * C, tl.sum(f[a], 1), mask=valid)
