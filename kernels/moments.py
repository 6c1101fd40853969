"""A3, forward pass 1: one read of X gives the descriptors and every moment that batch normalisation needs.

    x' = x - c, c the mean of four samples of the row (so that |mean| >> std does not cancel)
    moments      c, s1 = sum x', s2 = sum x'^2, t_a = sum m_a x', t2_a = sum m_a x'^2,
                 q1_ab = sum m_a m_b x', q2_ab = sum m_a m_b x'^2                                       (ab: a <= b)
    descriptors  avg x, max x, avg m_a x, max m_a x, and the first position of each maximum
    mass         M_a = sum m_a, M_ab = sum m_a m_b, in double

A program holds a tile [BLOCK_C, BLOCK_S] and walks it along a strip of the pixels of one image; each statistic is an
accumulator of the tile's size, reduced over the pixels once, at the end of the strip. Up to four anatomies share a
program; beyond, a program takes one anatomy (and its pairs with all others), and the programs of one strip are
neighbours, so that X comes from the second-level cache after the first. The mass has programs of its own in the same
launch. Where an image has several strips, axnet.kernels.combine adds them in order.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import above, first_maximum, load_masks, pair_row, repeat, tile_offsets

MASS_BLOCK: tl.constexpr = tl.constexpr(1024)


@triton.jit
def _sample_mean(row_ptr, step, valid, S, acc: tl.constexpr):
    """Mean [BLOCK_C] of four samples of each row, 0 where it is not finite: NaN has to show in the sums instead."""
    total = tl.load(row_ptr + (S // 8) * step, mask=valid, other=0.0).to(acc)
    total += tl.load(row_ptr + (3 * S // 8) * step, mask=valid, other=0.0).to(acc)
    total += tl.load(row_ptr + (5 * S // 8) * step, mask=valid, other=0.0).to(acc)
    total += tl.load(row_ptr + (7 * S // 8) * step, mask=valid, other=0.0).to(acc)
    total *= 0.25
    return tl.where(total - total == 0, total, 0.0)


@triton.jit
def _store_mass(mask_ptr, mass_ptr, task, S, A: tl.constexpr, BLOCK: tl.constexpr):
    """One number of the mass: row task % (A + pairs) of an image."""
    PAIRS: tl.constexpr = A * (A + 1) // 2
    n = task // (A + PAIRS)
    row = task % (A + PAIRS)
    a = row
    b = row
    for i in tl.static_range(A):
        first = A + i * A - i * (i - 1) // 2
        inside = (row >= first) & (row < first + A - i)
        a = tl.where(inside, i, a)
        b = tl.where(inside, i + row - first, b)
    base = mask_ptr + tl.cast(n, tl.int64) * A * S
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, S, BLOCK):
        s = first + tl.arange(0, BLOCK)
        product = tl.load(base + a * S + s, mask=s < S, other=0.0).to(tl.float64)
        if row >= A:
            product *= tl.load(base + b * S + s, mask=s < S, other=0.0).to(tl.float64)
        total += product
    tl.store(mass_ptr + task, tl.sum(total, 0))


@triton.jit
def _store_strip(
    x_ptr,
    mask_ptr,
    descriptors_ptr,
    moments_ptr,
    argmax_ptr,
    n,
    strip,
    first_channel,
    group,
    image_stride,
    stride,
    C,
    S,
    strips,
    strip_pixels,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    SECOND: tl.constexpr,
    POSITIONS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Statistics of BLOCK_C channels over one strip, for the anatomies group * ROWS and on."""
    PAIRS: tl.constexpr = A * (A + 1) // 2
    MOMENTS: tl.constexpr = 3 + 2 * A + 2 * PAIRS
    acc: tl.constexpr = mask_ptr.dtype.element_ty
    c = first_channel + tl.arange(0, BLOCK_C)
    lane = tl.arange(0, BLOCK_S)
    valid = c < C
    base = x_ptr + tl.cast(n, tl.int64) * image_stride
    masks = mask_ptr + tl.cast(n, tl.int64) * A * S
    begin = strip * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)

    zero = tl.zeros([BLOCK_C, BLOCK_S], acc)
    shift = tl.zeros([BLOCK_C], acc)
    if SECOND:
        if LAST:
            shift = _sample_mean(base + c, tl.cast(stride, tl.int64), valid, S, acc)
        else:
            shift = _sample_mean(base + c.to(tl.int64) * stride, 1, valid, S, acc)
    s1 = zero
    s2 = zero
    lowest = zero + float("-inf")
    places = (begin + lane)[None, :] + tl.zeros([BLOCK_C, BLOCK_S], tl.int32)
    top = lowest
    at = places
    mass = repeat(tl.zeros([1, BLOCK_S], acc), ROWS)
    t = repeat(zero, ROWS)
    t2 = repeat(zero, ROWS)
    tops = repeat(lowest, ROWS)
    ats = repeat(places, ROWS)
    q1 = repeat(zero, ROWS * A if SECOND else 1)
    q2 = repeat(zero, ROWS * A if SECOND else 1)
    for first in tl.range(begin, end, BLOCK_S, num_stages=3):
        s = first + lane
        inside = s < end
        x = tl.load(base + tile_offsets(c, s, stride, LAST), mask=valid[:, None] & inside[None, :], other=0.0).to(
            acc
        )  # [BLOCK_C, BLOCK_S]
        centred = tl.where(inside[None, :], x - shift[:, None], 0.0)
        s1 += centred
        if SECOND:
            s2 += centred * centred
        value = tl.where(inside[None, :], x, float("-inf"))
        better = above(value, top)
        top = tl.where(better, value, top)
        if POSITIONS:
            at = tl.where(better, s[None, :], at)
        others = load_masks(masks, s, inside, S, A if SECOND else 1)
        next_mass = ()
        next_t = ()
        next_t2 = ()
        next_tops = ()
        next_ats = ()
        next_q1 = ()
        next_q2 = ()
        for i in tl.static_range(ROWS):
            m = tl.load(masks + (group * ROWS + i) * S + s, mask=inside, other=0.0)[None, :]
            weighted = m * centred
            next_mass = next_mass + (mass[i] + m,)
            next_t = next_t + (t[i] + weighted,)
            value = tl.where(inside[None, :], m * x, float("-inf"))
            better = above(value, tops[i])
            next_tops = next_tops + (tl.where(better, value, tops[i]),)
            if POSITIONS:
                next_ats = next_ats + (tl.where(better, s[None, :], ats[i]),)
            if SECOND:
                square = weighted * centred
                next_t2 = next_t2 + (t2[i] + square,)
                for b in tl.static_range(A):
                    # where the program holds all rows, the pairs below the diagonal stay zero and cost nothing
                    if ROWS < A or b >= i:
                        next_q1 = next_q1 + (q1[i * A + b] + weighted * others[b],)
                        next_q2 = next_q2 + (q2[i * A + b] + square * others[b],)
                    else:
                        next_q1 = next_q1 + (q1[i * A + b],)
                        next_q2 = next_q2 + (q2[i * A + b],)
        mass = next_mass
        t = next_t
        tops = next_tops
        if POSITIONS:
            ats = next_ats
        if SECOND:
            t2 = next_t2
            q1 = next_q1
            q2 = next_q2

    place = tl.cast(n, tl.int64) * strips + strip
    out = descriptors_ptr + place * (2 + 2 * A) * C + c
    moments = moments_ptr + place * MOMENTS * C + c
    argmax = argmax_ptr + place * (1 + A) * C + c
    zeros = tl.zeros([BLOCK_C], tl.int32)
    pixels = (end - begin).to(acc)
    whole = tl.cast(S, acc)
    if group == 0:
        total = tl.sum(s1, 1)
        peak, position = first_maximum(top, at)
        tl.store(out, (total + shift * pixels) / whole, mask=valid)
        tl.store(out + C, peak, mask=valid)
        if POSITIONS:
            tl.store(argmax, position, mask=valid)
        if SECOND:
            tl.store(moments, shift, mask=valid)
            tl.store(moments + C, total, mask=valid)
            tl.store(moments + 2 * C, tl.sum(s2, 1), mask=valid)
    for i in tl.static_range(ROWS):
        a = group * ROWS + i
        total = tl.sum(t[i], 1)
        peak, position = first_maximum(tops[i], ats[i])
        tl.store(out + (2 + a) * C, (total + shift * tl.sum(mass[i], 1)) / whole, mask=valid)
        tl.store(out + (2 + A + a) * C, peak, mask=valid)
        if POSITIONS:
            tl.store(argmax + (1 + a) * C, position, mask=valid)
        if SECOND:
            tl.store(moments + (3 + a) * C, total, mask=valid)
            tl.store(moments + (3 + A + a) * C, tl.sum(t2[i], 1), mask=valid)
            for b in tl.static_range(A):
                if ROWS < A or b >= i:
                    row = 3 + 2 * A + pair_row(a, b, A)
                    wanted = valid & (b - a + zeros >= 0)
                    tl.store(moments + row * C, tl.sum(q1[i * A + b], 1), mask=wanted)
                    tl.store(moments + (row + PAIRS) * C, tl.sum(q2[i * A + b], 1), mask=wanted)


@triton.jit
def moments_kernel(
    x_ptr,  # [N, C, S]
    mask_ptr,  # [N, A, S]
    descriptors_ptr,  # [N, strips, 2 + 2A, C]
    moments_ptr,  # [N, strips, 3 + 2A + 2 pairs, C]
    argmax_ptr,  # [N, strips, 1 + A, C]
    mass_ptr,  # [N, A + pairs] double
    image_stride,
    stride,
    N,
    C,
    S,
    strips,
    strip_pixels,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    SECOND: tl.constexpr,
    POSITIONS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid: N (A + pairs) programs for the mass, then (image, channel block, strip, group of anatomies)."""
    task = tl.program_id(0)
    masses = N * (A + A * (A + 1) // 2)
    if task < masses:
        _store_mass(mask_ptr, mass_ptr, task, S, A, MASS_BLOCK)
    else:
        task -= masses
        group = task % (A // ROWS)
        task = task // (A // ROWS)
        strip = task % strips
        task = task // strips
        channel_blocks = tl.cdiv(C, BLOCK_C)
        _store_strip(
            x_ptr,
            mask_ptr,
            descriptors_ptr,
            moments_ptr,
            argmax_ptr,
            task // channel_blocks,
            strip,
            (task % channel_blocks) * BLOCK_C,
            group,
            image_stride,
            stride,
            C,
            S,
            strips,
            strip_pixels,
            A,
            ROWS,
            SECOND,
            POSITIONS,
            LAST,
            BLOCK_C,
            BLOCK_S,
        )
