"""What the kernels share: where a tile lies, tuples of slices and of accumulators, maxima with their positions.

A tile holds BLOCK_C channels by some pixels of one image, the pixels flat (s = h W + w). Both layouts are walked by the
same code; LAST says that channels are adjacent in memory, and `stride` is the step of the other axis. Kernels that map
element by element have it as [BLOCK_C, BLOCK_S]. Kernels that sum have LANES x GROUP pixels as a tuple of GROUP
slices [BLOCK_C, LANES]: slice g has pixel GROUP l + g of lane l. So an accumulator is [BLOCK_C, LANES] whatever GROUP
is, and a thread that loaded 16 bytes adds them up without an exchange. Every tile that sums has a size and a place that
depend on the shape alone, so that sums are bit-equal from run to run. A tile of masks has fewer numbers than the
program has threads: the compiler then loads it in the layout of the features instead of the other way round.
"""

import triton
import triton.language as tl


@triton.jit
def tile_offsets(c, s, stride, LAST: tl.constexpr):
    """Offsets [len(c), len(s)] of channels c and pixels s inside an image."""
    if LAST:
        offsets = c[:, None] + s.to(tl.int64)[None, :] * stride
    else:
        offsets = c.to(tl.int64)[:, None] * stride + s[None, :]
    return offsets


@triton.jit
def slices(v, GROUP: tl.constexpr):
    """Tuple of the GROUP slices [R, L] of v [R, L, GROUP]; GROUP is 1, 2, 4 or 8."""
    if GROUP == 1:
        out = (tl.reshape(v, [v.shape[0], v.shape[1]]),)
    else:
        even, odd = tl.split(tl.reshape(v, [v.shape[0], v.shape[1], GROUP // 2, 2]))
        left = slices(even, GROUP // 2)
        right = slices(odd, GROUP // 2)
        out = ()
        for g in tl.static_range(GROUP // 2):
            out = out + (left[g], right[g])
    return out


@triton.jit
def load_tile(
    base,
    c,
    valid,
    first,
    end,
    stride,
    acc: tl.constexpr,
    LAST: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The tile at pixel `first` of the image at base, in acc; zero outside of the channels and from pixel `end` on."""
    lane = tl.arange(0, LANES) * GROUP
    if LAST or GROUP == 1:
        out = ()
        for g in tl.static_range(GROUP):
            s = first + lane + g
            there = valid[:, None]
            if not EVEN:
                there = there & (s < end)[None, :]
            out = out + (tl.load(base + tile_offsets(c, s, stride, LAST), mask=there, other=0.0).to(acc),)
    else:
        s = first + tl.arange(0, LANES * GROUP)
        there = valid[:, None]
        if not EVEN:
            there = there & (s < end)[None, :]
        tile = tl.load(base + tile_offsets(c, s, stride, LAST), mask=there, other=0.0).to(acc)
        out = slices(tl.reshape(tile, [tile.shape[0], LANES, GROUP]), GROUP)
    return out


@triton.jit
def load_mask_rows(mask_ptr, s, inside, S, acc: tl.constexpr, COUNT: tl.constexpr):
    """Tuple of COUNT rows [1, BLOCK_S] of masks that lie S apart."""
    out = ()
    for a in tl.static_range(COUNT):
        out = out + (tl.load(mask_ptr + a * S + s, mask=inside, other=0.0).to(acc)[None, :],)
    return out


@triton.jit
def load_masks(
    mask_ptr,
    first,
    end,
    S,
    acc: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Tuple of COUNT masks that lie S apart, of the tile at pixel `first`: GROUP slices [1, LANES] of each, flat."""
    s = first + tl.arange(0, LANES * GROUP)
    out = ()
    for a in tl.static_range(COUNT):
        if EVEN:
            mask = tl.load(mask_ptr + a * S + s)
        else:
            mask = tl.load(mask_ptr + a * S + s, mask=s < end, other=0.0)
        out = out + slices(tl.reshape(mask.to(acc), [1, LANES, GROUP]), GROUP)
    return out


@triton.jit
def load_rows(ptr, c, valid, C, acc: tl.constexpr, COUNT: tl.constexpr):
    """Tuple of COUNT columns [BLOCK_C, 1] of rows that lie C apart."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.load(ptr + k * C + c, mask=valid, other=0.0).to(acc)[:, None],)
    return out


@triton.jit
def madd(a, b, c):
    """a b + c in one instruction, of tensors that broadcast."""
    a, b = tl.broadcast(a, b)
    a, c = tl.broadcast(a, c)
    b, c = tl.broadcast(b, c)
    return tl.fma(a, b, c)


@triton.jit
def repeat(value, COUNT: tl.constexpr):
    """Tuple that holds `value` COUNT times: accumulators with a name each, so that they stay in registers."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (value,)
    return out


@triton.jit
def above(value, top):
    """Whether value goes before top as a maximum: NaN is the largest, and of equals the first stays."""
    return (value > top) | ((value != value) & (top == top))


@triton.jit
def pair_row(a, b, A: tl.constexpr):
    """Row of the pair (a, b), a <= b, among the pairs of A anatomies."""
    return a * A - a * (a - 1) // 2 + b - a
