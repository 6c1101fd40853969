"""What the kernels share: where a tile lies, tuples of accumulators, maxima with their positions.

A tile is [BLOCK_C, BLOCK_S]: channels by pixels, the pixels flat (s = h W + w), of one image. Both layouts are walked
by the same code; LAST says which axis is adjacent in memory and `stride` is the step of the other one. Every tile that
sums has a size and a place that depend on the shape alone, so that sums are bit-equal from run to run.
"""

import triton
import triton.language as tl


@triton.jit
def tile_offsets(c, s, stride, LAST: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_S] of channels c and pixels s inside an image."""
    if LAST:
        offsets = c[:, None] + s.to(tl.int64)[None, :] * stride
    else:
        offsets = c.to(tl.int64)[:, None] * stride + s[None, :]
    return offsets


@triton.jit
def repeat(value, COUNT: tl.constexpr):
    """Tuple that holds `value` COUNT times: accumulators with a name each, so that they stay in registers."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (value,)
    return out


@triton.jit
def load_masks(mask_ptr, s, inside, S, COUNT: tl.constexpr):
    """Tuple of COUNT rows [1, BLOCK_S] of masks that lie S apart."""
    out = ()
    for a in tl.static_range(COUNT):
        out = out + (tl.load(mask_ptr + a * S + s, mask=inside, other=0.0)[None, :],)
    return out


@triton.jit
def load_rows(ptr, c, valid, C, COUNT: tl.constexpr):
    """Tuple of COUNT columns [BLOCK_C, 1] of rows that lie C apart."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.load(ptr + k * C + c, mask=valid, other=0.0)[:, None],)
    return out


@triton.jit
def above(value, top):
    """Whether value goes before top as a maximum: NaN is the largest, and of equals the first stays."""
    return (value > top) | ((value != value) & (top == top))


@triton.jit
def first_maximum(top, at):
    """Maximum [BLOCK_C] of top [BLOCK_C, BLOCK_S] over its pixels and the first of the positions `at` that hold it."""
    nan = top != top
    largest = tl.max(tl.where(nan, float("-inf"), top), 1)
    found = tl.max(nan.to(tl.int32), 1) > 0
    hit = tl.where(found[:, None], nan, top == largest[:, None])
    position = tl.min(tl.where(hit, at, 2147483647), 1)
    return tl.where(found, float("nan"), largest), position


@triton.jit
def pair_row(a, b, A: tl.constexpr):
    """Row of the pair (a, b), a <= b, among the pairs of A anatomies."""
    return a * A - a * (a - 1) // 2 + b - a
