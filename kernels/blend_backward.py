"""A3, backward pass 2: two reads, one write; and the gradient of the masks.

    dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + delta_avg/S + sum_a delta_mavg,a m_a/S
         + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a
    dm_a = sum_c [ (k1 D_o + k2 + k3 X G_o) X w_oa + delta_mavg,a X/S + [s = argmax_a] delta_mmax,a X ]

o runs over the output blocks: none (the descriptors alone), one of all anatomies ("mean"), A of one ("concat").
input: a program holds a tile [BLOCK_C, BLOCK_S] of one image and every coefficient of its channels; no tile can change
a bit of it. mask: a program holds the pixels of one anatomy and walks all channels; rare, so plain.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import load_masks, load_rows, tile_offsets


@triton.jit
def _normalised_grad(x, d, q, m, ROWS: tl.constexpr):
    """dY of one output block and its gate G; q: k1, k2, k3, b, w_a as columns, m: masks as rows."""
    gate = q[3] + tl.zeros_like(x)
    for a in tl.static_range(ROWS):
        gate += q[4 + a] * m[a]
    return q[0] * d + q[1] + q[2] * (x * gate), gate


@triton.jit
def input_kernel(
    x_ptr,  # [N, C, S]
    d_ptr,  # [N, blocks C, S]
    mask_ptr,  # [N, A, S]
    coef_ptr,  # [N, blocks, 4 + B, C]: k1, k2, k3, b, w_a
    delta_ptr,  # [N, 2 + 2A, C]: gradient of avg, max, masked avg, masked max
    argmax_ptr,  # [N, 1 + A, C]
    dx_ptr,  # [N, C, S]
    x_image,
    x_stride,
    d_image,
    d_stride,
    dx_image,
    dx_stride,
    C,
    S,
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAST: tl.constexpr,
    FAST: tl.constexpr,
    SLOW: tl.constexpr,
):
    """Grid: (image, channel block, pixel block); FAST is the tile's side along the adjacent axis."""
    BLOCK_C: tl.constexpr = FAST if LAST else SLOW
    BLOCK_S: tl.constexpr = SLOW if LAST else FAST
    B: tl.constexpr = A if BLOCKS < 2 else 1
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
    whole = tl.cast(S, acc)
    masks = mask_ptr + n * A * S
    delta = delta_ptr + n * (2 + 2 * A) * C
    argmax = argmax_ptr + n * (1 + A) * C

    place = tl.load(argmax + c, mask=valid, other=-1)[:, None]
    total = tl.load(delta + c, mask=valid, other=0.0)[:, None] / whole
    total = total + tl.where(place == s[None, :], tl.load(delta + C + c, mask=valid, other=0.0)[:, None], 0.0)
    m = load_masks(masks, s, inside, S, A)
    for a in tl.static_range(A):
        place = tl.load(argmax + (1 + a) * C + c, mask=valid, other=-1)[:, None]
        mean_grad = tl.load(delta + (2 + a) * C + c, mask=valid, other=0.0)[:, None] / whole
        max_grad = tl.load(delta + (2 + A + a) * C + c, mask=valid, other=0.0)[:, None]
        total += (mean_grad + tl.where(place == s[None, :], max_grad, 0.0)) * m[a]
    for o in tl.static_range(BLOCKS):
        d = tl.load(d_ptr + n * d_image + tile_offsets(o * C + c, s, d_stride, LAST), mask=both, other=0.0).to(acc)
        q = load_rows(coef_ptr + (n * BLOCKS + o) * (4 + B) * C, c, valid, C, 4 + B)
        dy, gate = _normalised_grad(x, d, q, load_masks(masks + o * S, s, inside, S, B), B)
        total += dy * gate
    tl.store(dx_ptr + n * dx_image + tile_offsets(c, s, dx_stride, LAST), total, mask=both)


@triton.jit
def mask_kernel(
    x_ptr,
    d_ptr,
    mask_ptr,
    coef_ptr,
    delta_ptr,
    argmax_ptr,
    dmask_ptr,  # [N, A, S]
    x_image,
    x_stride,
    d_image,
    d_stride,
    C,
    S,
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid: (image, pixel block, anatomy); the sum over the channels goes in their order."""
    B: tl.constexpr = A if BLOCKS < 2 else 1
    acc: tl.constexpr = mask_ptr.dtype.element_ty
    a = tl.program_id(0) % A
    task = tl.program_id(0) // A
    pixel_blocks = tl.cdiv(S, BLOCK_S)
    n = tl.cast(task // pixel_blocks, tl.int64)
    s = (task % pixel_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = s < S
    whole = tl.cast(S, acc)
    o = a // B  # the block that this anatomy belongs to
    m = load_masks(mask_ptr + (n * A + o) * S, s, inside, S, B)
    total = tl.zeros([BLOCK_C, BLOCK_S], acc)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        valid = c < C
        both = valid[:, None] & inside[None, :]
        x = tl.load(x_ptr + n * x_image + tile_offsets(c, s, x_stride, LAST), mask=both, other=0.0).to(acc)
        delta = delta_ptr + n * (2 + 2 * A) * C + c
        place = tl.load(argmax_ptr + (n * (1 + A) + 1 + a) * C + c, mask=valid, other=-1)[:, None]
        mean_grad = tl.load(delta + (2 + a) * C, mask=valid, other=0.0)[:, None] / whole
        max_grad = tl.load(delta + (2 + A + a) * C, mask=valid, other=0.0)[:, None]
        slope = mean_grad + tl.where(place == s[None, :], max_grad, 0.0)
        if BLOCKS > 0:
            d = tl.load(d_ptr + n * d_image + tile_offsets(o * C + c, s, d_stride, LAST), mask=both, other=0.0).to(acc)
            coef = coef_ptr + (n * BLOCKS + o) * (4 + B) * C
            q = load_rows(coef, c, valid, C, 4 + B)
            dy, _ = _normalised_grad(x, d, q, m, B)
            slope += dy * tl.load(coef + (4 + a - o * B) * C + c, mask=valid, other=0.0)[:, None]
        total += slope * x
    tl.store(dmask_ptr + (n * A + a) * S + s, tl.sum(total, 0), mask=inside)
