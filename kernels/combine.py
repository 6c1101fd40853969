"""A3, after forward pass 1: the strips of an image become one row of descriptors and one of moments.

Descriptors and moments of the strips are parts of sums, maxima with their positions, and the shift, which all strips
share. A program holds BLOCK_C channels of one such row and adds the strips in order.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import above


@triton.jit
def combine_kernel(
    part_descriptors_ptr,  # [N, strips, 2 + 2A, C]
    part_moments_ptr,
    part_argmax_ptr,
    descriptors_ptr,  # [N, 2 + 2A, C]
    moments_ptr,
    argmax_ptr,
    C,
    strips,
    A: tl.constexpr,
    SECOND: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add the strips of an image in order. Grid: (image, channel block) by rows of descriptors, then of moments."""
    DESCRIPTORS: tl.constexpr = 2 + 2 * A
    MOMENTS: tl.constexpr = 3 + 2 * A + A * (A + 1)
    channel_blocks = tl.cdiv(C, BLOCK_C)
    n = tl.cast(tl.program_id(0) // channel_blocks, tl.int64)
    c = (tl.program_id(0) % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(1)
    valid = c < C
    if row < DESCRIPTORS:
        part = part_descriptors_ptr + (n * strips * DESCRIPTORS + row) * C + c
        total = tl.load(part, mask=valid, other=0.0)
        if (row == 1) | (row >= 2 + A):
            peak_row = tl.where(row == 1, 0, row - 1 - A)
            positions = part_argmax_ptr + (n * strips * (1 + A) + peak_row) * C + c
            position = tl.zeros([BLOCK_C], tl.int32)
            if POSITIONS:
                position = tl.load(positions, mask=valid, other=0)
            for i in range(1, strips):
                value = tl.load(part + i * DESCRIPTORS * C, mask=valid, other=0.0)
                better = above(value, total)
                total = tl.where(better, value, total)
                if POSITIONS:
                    position = tl.where(better, tl.load(positions + i * (1 + A) * C, mask=valid, other=0), position)
            if POSITIONS:
                tl.store(argmax_ptr + (n * (1 + A) + peak_row) * C + c, position, mask=valid)
        else:
            for i in range(1, strips):
                total += tl.load(part + i * DESCRIPTORS * C, mask=valid, other=0.0)
        tl.store(descriptors_ptr + (n * DESCRIPTORS + row) * C + c, total, mask=valid)
    elif SECOND:
        row -= DESCRIPTORS
        part = part_moments_ptr + (n * strips * MOMENTS + row) * C + c
        total = tl.load(part, mask=valid, other=0.0)
        if row > 0:  # row 0 is the shift, the same in every strip
            for i in range(1, strips):
                total += tl.load(part + i * MOMENTS * C, mask=valid, other=0.0)
        tl.store(moments_ptr + (n * MOMENTS + row) * C + c, total, mask=valid)
