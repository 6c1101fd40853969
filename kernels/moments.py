"""A3, forward pass 1: one read of X gives the descriptors and every moment that batch normalisation needs.

    x' = x - c, c = 0 where mean^2 <= 15 var, else the mean of four samples of the row
    moments      c, s1 = sum x', s2 = sum x'^2, t_a = sum m_a x', t2_a = sum m_a x'^2,
                 q1_ab = sum m_a m_b x', q2_ab = sum m_a m_b x'^2                                       (ab: a <= b)
    descriptors  avg x, max x, avg m_a x, max m_a x, and the first position of each maximum
    mass         M_a = sum m_a, M_ab = sum m_a m_b, in double

A program walks a strip of the pixels of BLOCK_C channels. A statistic is an accumulator per channel and lane
(axnet.kernels.tiles); a maximum is noted with the tile in which its lane reached it, and the group of pixels that this
names is read again at the end for the position. That walk knows neither shifts nor NaN: q1 stands for nothing where
c = 0, and rows that need more (mean far above the spread, or a sum that is not a number) have their tile walked once
more with all care. Several strips of an image have to agree on c, so they take the careful walk at once, and
axnet.kernels.combine adds them in order.

Up to four anatomies share a program; beyond, a program takes one anatomy (and its pairs with all others), and the
programs of one strip are neighbours, so that X comes from the second-level cache after the first. The mass has programs
of its own in the same launch.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import above, load_masks, load_tile, pair_row, repeat

MASS_BLOCK: tl.constexpr = tl.constexpr(1024)
NOWHERE: tl.constexpr = tl.constexpr(2147483647)


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
def _walk(
    base,
    masks,
    begin,
    end,
    shift,
    c,
    valid,
    group,
    stride,
    S,
    acc: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    SECOND: tl.constexpr,
    POSITIONS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """Accumulators of a strip; the anatomies are group * ROWS and on.

    sums: s1, t_i; mass: of every anatomy; squares: s2, t2_i; pairs: q2_ib, row i A + b; products: q1_ib; tops: maxima
    of x and of every m_i x; tiles: the first pixel of the tile in which a lane reached its maximum. Where the program
    holds all anatomies the pairs below the diagonal stay zero and cost nothing.
    """
    PAIRS: tl.constexpr = ROWS * A if SECOND else 1
    zero = tl.zeros([BLOCK_C, LANES], acc)
    sums = repeat(zero, 1 + ROWS)
    mass = repeat(tl.zeros([1, LANES], acc), ROWS)
    squares = repeat(zero, 1 + ROWS if SECOND else 1)
    pairs = repeat(zero, PAIRS)
    products = repeat(zero, PAIRS if CAREFUL else 1)
    tops = repeat(zero + float("-inf"), 1 + ROWS)
    tiles = repeat(zero.to(tl.int32) + begin, (1 + ROWS) if POSITIONS else 1)
    for first in tl.range(begin, end, LANES * GROUP, num_stages=1 if CAREFUL else 3):
        xs = load_tile(base, c, valid, first, end, stride, acc, LAST, LANES, GROUP, EVEN)
        own = load_masks(masks + group * ROWS * S, first, end, S, acc, LANES, GROUP, EVEN, ROWS)
        others = own
        if ROWS < A:
            others = load_masks(masks, first, end, S, acc, LANES, GROUP, EVEN, A if SECOND else 1)
        peaks = repeat(zero + float("-inf"), 1 + ROWS)
        for g in tl.static_range(GROUP):
            x = xs[g]
            inside = (first + g + tl.arange(0, LANES) * GROUP < end)[None, :]
            centred = x
            if CAREFUL:
                centred = tl.where(inside, x - shift[:, None], 0.0)
            next_sums = (sums[0] + centred,)
            next_squares = (squares[0],)
            if SECOND:
                next_squares = (tl.fma(centred, centred, squares[0]),)
            next_mass = ()
            next_pairs = ()
            next_products = ()
            next_peaks = ()
            for i in tl.static_range(-1, ROWS):
                value = x
                if i >= 0:
                    mask = own[i * GROUP + g]
                    value = mask * x
                    weighted = value
                    if CAREFUL:
                        weighted = mask * centred
                    next_mass = next_mass + (mass[i] + mask,)
                    next_sums = next_sums + (sums[1 + i] + weighted,)
                    if SECOND:
                        next_squares = next_squares + (tl.fma(weighted, centred, squares[1 + i]),)
                        for b in tl.static_range(A):
                            if ROWS < A or b >= i:
                                other = others[b * GROUP + g]
                                next_pairs = next_pairs + (tl.fma(weighted, other * centred, pairs[i * A + b]),)
                                if CAREFUL:
                                    next_products = next_products + (products[i * A + b] + weighted * other,)
                            else:
                                next_pairs = next_pairs + (pairs[i * A + b],)
                                if CAREFUL:
                                    next_products = next_products + (products[i * A + b],)
                if not EVEN:
                    value = tl.where(inside, value, float("-inf"))
                if CAREFUL:
                    next_peaks = next_peaks + (tl.where(above(value, peaks[1 + i]), value, peaks[1 + i]),)
                else:
                    next_peaks = next_peaks + (tl.maximum(peaks[1 + i], value),)
            sums = next_sums
            mass = next_mass
            peaks = next_peaks
            if SECOND:
                squares = next_squares
                pairs = next_pairs
                if CAREFUL:
                    products = next_products
        next_tops = ()
        next_tiles = ()
        for i in tl.static_range(1 + ROWS):
            if CAREFUL:
                rises = above(peaks[i], tops[i])
            else:
                rises = peaks[i] > tops[i]
            next_tops = next_tops + (tl.where(rises, peaks[i], tops[i]),)
            if POSITIONS:
                next_tiles = next_tiles + (tl.where(rises, first, tiles[i]),)
        tops = next_tops
        if POSITIONS:
            tiles = next_tiles
    return sums, mass, squares, pairs, products, tops, tiles


@triton.jit
def _peak(
    base,
    mask_row,
    top,
    tile,
    c,
    valid,
    end,
    stride,
    acc: tl.constexpr,
    MASKED: tl.constexpr,
    POSITIONS: tl.constexpr,
    LAST: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Maximum [BLOCK_C] over the lanes and its first position: the group that reached it is read once more."""
    nan = top != top
    peak = tl.max(tl.where(nan, float("-inf"), top), 1)
    peak = tl.where(tl.max(nan.to(tl.int32), 1) > 0, float("nan"), peak)
    position = tl.zeros_like(c)
    if POSITIONS:
        holds = tl.where((peak == peak)[:, None], top == peak[:, None], nan)
        begin = tl.min(tl.where(holds, tile + (tl.arange(0, LANES) * GROUP)[None, :], NOWHERE), 1)
        s = begin[:, None] + tl.arange(0, GROUP)[None, :]
        there = valid[:, None] & (s < end)
        if LAST:
            offsets = c[:, None] + s.to(tl.int64) * stride
        else:
            offsets = c.to(tl.int64)[:, None] * stride + s
        value = tl.load(base + offsets, mask=there, other=0.0).to(acc)
        if MASKED:
            value *= tl.load(mask_row + s, mask=there, other=0.0).to(acc)
        holds = tl.where((peak == peak)[:, None], value == peak[:, None], value != value) & there
        position = tl.min(tl.where(holds, s, NOWHERE), 1)
    return peak, position


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
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    CAREFUL: tl.constexpr,
):
    """Statistics of BLOCK_C channels over one strip, anatomies group * ROWS and on; whether a row needs care."""
    PAIRS: tl.constexpr = A * (A + 1) // 2
    MOMENTS: tl.constexpr = 3 + 2 * A + 2 * PAIRS
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    c = first_channel + tl.arange(0, BLOCK_C)
    valid = c < C
    base = x_ptr + tl.cast(n, tl.int64) * image_stride
    masks = mask_ptr + tl.cast(n, tl.int64) * A * S
    begin = strip * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    pixels = (end - begin).to(acc)
    whole = tl.cast(S, acc)
    shift = tl.zeros([BLOCK_C], acc)
    if SECOND and CAREFUL:
        if LAST:
            shift = _sample_mean(base + c, tl.cast(stride, tl.int64), valid, S, acc)
        else:
            shift = _sample_mean(base + c.to(tl.int64) * stride, 1, valid, S, acc)
    sums, mass, squares, pairs, products, tops, tiles = _walk(
        base,
        masks,
        begin,
        end,
        shift,
        c,
        valid,
        group,
        stride,
        S,
        acc,
        A,
        ROWS,
        SECOND,
        POSITIONS,
        LAST,
        BLOCK_C,
        LANES,
        GROUP,
        EVEN,
        CAREFUL,
    )

    place = tl.cast(n, tl.int64) * strips + strip
    out = descriptors_ptr + place * (2 + 2 * A) * C + c
    moments = moments_ptr + place * MOMENTS * C + c
    argmax = argmax_ptr + place * (1 + A) * C + c
    lost = tl.zeros([BLOCK_C], tl.int1)
    for i in tl.static_range(-1, ROWS):
        a = group * ROWS + i
        total = tl.sum(sums[1 + i], 1)
        lost = lost | (total != total)
        tile = tiles[1 + i if POSITIONS else 0]
        peak, position = _peak(
            base, masks + a * S, tops[1 + i], tile, c, valid, end, stride, acc, i >= 0, POSITIONS, LAST, LANES, GROUP
        )
        if i < 0:
            if SECOND:
                square = tl.sum(squares[0], 1)
                mean = total / pixels
                lost = lost | (mean * mean > 15.0 * (square / pixels - mean * mean))
            if group == 0:
                tl.store(out, (total + shift * pixels) / whole, mask=valid)
                tl.store(out + C, peak, mask=valid)
                if POSITIONS:
                    tl.store(argmax, position, mask=valid)
                if SECOND:
                    tl.store(moments, shift, mask=valid)
                    tl.store(moments + C, total, mask=valid)
                    tl.store(moments + 2 * C, square, mask=valid)
        else:
            tl.store(out + (2 + a) * C, (total + shift * tl.sum(mass[i])) / whole, mask=valid)
            tl.store(out + (2 + A + a) * C, peak, mask=valid)
            if POSITIONS:
                tl.store(argmax + (1 + a) * C, position, mask=valid)
            if SECOND:
                tl.store(moments + (3 + a) * C, total, mask=valid)
                tl.store(moments + (3 + A + a) * C, tl.sum(squares[1 + i], 1), mask=valid)
                for b in tl.static_range(A):
                    if ROWS < A or b >= i:
                        row = 3 + 2 * A + pair_row(a, b, A)
                        wanted = valid & (b - a + tl.zeros_like(c) >= 0)
                        product = tl.zeros([BLOCK_C], acc)
                        if CAREFUL:
                            product = tl.sum(products[i * A + b], 1)
                        tl.store(moments + row * C, product, mask=wanted)
                        tl.store(moments + (row + PAIRS) * C, tl.sum(pairs[i * A + b], 1), mask=wanted)
    return tl.max((lost & valid).to(tl.int32), 0)


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
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    SINGLE: tl.constexpr,
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
        n = task // channel_blocks
        channel = (task % channel_blocks) * BLOCK_C
        again = tl.cast(1, tl.int32)
        if SINGLE:
            again = _store_strip(
                x_ptr,
                mask_ptr,
                descriptors_ptr,
                moments_ptr,
                argmax_ptr,
                n,
                strip,
                channel,
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
                LANES,
                GROUP,
                EVEN,
                False,
            )
        if again > 0:
            for i in range(ROWS):
                _store_strip(
                    x_ptr,
                    mask_ptr,
                    descriptors_ptr,
                    moments_ptr,
                    argmax_ptr,
                    n,
                    strip,
                    channel,
                    group * ROWS + i,
                    image_stride,
                    stride,
                    C,
                    S,
                    strips,
                    strip_pixels,
                    A,
                    1,
                    SECOND,
                    POSITIONS,
                    LAST,
                    BLOCK_C,
                    LANES,
                    1,
                    EVEN,
                    True,
                )
