"""A3, backward pass 2: two reads, one write; and the gradient of the masks.

    dX = sum_o (k1 D_o + k2 + k3 X G_o) G_o + delta_avg/S + sum_a delta_mavg,a m_a/S
         + [s = argmax] delta_max + sum_a [s = argmax_a] delta_mmax,a m_a
    dm_a = sum_c [ (k1 D_o + k2 + k3 X G_o) X w_oa + delta_mavg,a X/S + [s = argmax_a] delta_mmax,a X ]

o runs over the output blocks: none (the descriptors alone), one of all anatomies ("mean"), A of one ("concat").
input: a program walks a strip of the pixels of BLOCK_C channels with every coefficient of them in registers. mask: a
program holds the pixels of one anatomy and walks all channels; rare, so plain.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import load_mask_rows, load_rows, madd, tile_offsets


@triton.jit
def _normalised_grad(x, d, q, m, ROWS: tl.constexpr):
    """dY of one output block and its gate G; q: k1, k2, k3, b, w_a as columns, m: masks as rows."""
    gate = q[3]
    for a in tl.static_range(ROWS):
        gate = madd(q[4 + a], m[a], gate)
    return madd(q[0], d, madd(q[2], x * gate, q[1])), gate


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
    strips,
    strip_pixels,
    A: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid: (image, channel block, strip)."""
    B: tl.constexpr = A if BLOCKS < 2 else 1
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    task = tl.program_id(0)
    strip = task % strips
    task = task // strips
    channel_blocks = tl.cdiv(C, BLOCK_C)
    n = tl.cast(task // channel_blocks, tl.int64)
    c = (task % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    if LAST:  # half of what could be loaded at once, or the coefficients of 8 channels fill a thread's registers
        c = tl.max_contiguous(tl.multiple_of(c, 4), 4)
    valid = c < C
    share = 1.0 / tl.cast(S, acc)
    masks = mask_ptr + n * A * S
    delta = load_rows(delta_ptr + n * (2 + 2 * A) * C, c, valid, C, acc, 2 + 2 * A)
    places = ()
    for a in tl.static_range(1 + A):
        places = places + (tl.load(argmax_ptr + (n * (1 + A) + a) * C + c, mask=valid, other=-1)[:, None],)
    coef = ()
    for o in tl.static_range(BLOCKS):
        coef = coef + load_rows(coef_ptr + (n * BLOCKS + o) * (4 + B) * C, c, valid, C, acc, 4 + B)
    begin = strip * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    for first in tl.range(begin, end, BLOCK_S, num_stages=3):
        s = first + tl.arange(0, BLOCK_S)
        inside = s < end
        both = valid[:, None] & inside[None, :]
        x = tl.load(x_ptr + n * x_image + tile_offsets(c, s, x_stride, LAST), mask=both, other=0.0).to(acc)
        zero = tl.zeros_like(x)
        m = load_mask_rows(masks, s, inside, S, acc, A)
        total = delta[0] * share + zero
        total = tl.where(places[0] == s[None, :], total + delta[1], total)
        for a in tl.static_range(A):
            slope = delta[2 + a] * share
            slope = tl.where(places[1 + a] == s[None, :], slope + delta[2 + A + a], slope + zero)
            total = tl.fma(slope, m[a] + zero, total)
        for o in tl.static_range(BLOCKS):
            d = tl.load(d_ptr + n * d_image + tile_offsets(o * C + c, s, d_stride, LAST), mask=both, other=0.0).to(acc)
            q = ()
            for k in tl.static_range(4 + B):
                q = q + (coef[o * (4 + B) + k],)
            own = ()
            for a in tl.static_range(B):
                own = own + (m[o + a],)
            dy, gate = _normalised_grad(x, d, q, own, B)
            total = madd(dy, gate, total)
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
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    a = tl.program_id(0) % A
    task = tl.program_id(0) // A
    pixel_blocks = tl.cdiv(S, BLOCK_S)
    n = tl.cast(task // pixel_blocks, tl.int64)
    s = (task % pixel_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = s < S
    whole = tl.cast(S, acc)
    o = a // B  # the block that this anatomy belongs to
    m = load_mask_rows(mask_ptr + (n * A + o) * S, s, inside, S, acc, B)
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
            q = load_rows(coef, c, valid, C, acc, 4 + B)
            dy, _ = _normalised_grad(x, d, q, m, B)
            slope += dy * tl.load(coef + (4 + a - o * B) * C + c, mask=valid, other=0.0)[:, None]
        total += slope * x
    tl.store(dmask_ptr + (n * A + a) * S + s, tl.sum(total, 0), mask=inside)
