"""What the ops share on the host: strides of maps, tiles, strips of pixels, the device of a launch."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from axnet.ops.layouts import channels_last, pixel_step

INTERPRETED = triton.knobs.runtime.interpret

LEAST_STRIP = 512  # pixels below which a second strip costs more, in its combining launch, than it brings
PROGRAMS = 512  # enough to fill a large GPU once
PIXELS = 64  # of a tile that sums


def walkable(x: Tensor, last: bool | None = None) -> Tensor:
    """The map itself where its pixels or its channels are adjacent (and `last` asks for no other), else a copy."""
    found = channels_last(x)
    if (found or pixel_step(x) == 1) and last in (None, found):
        return x
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def strides(x: Tensor) -> tuple[int, int]:
    """Steps between images, and along the axis that is not adjacent, of a walkable map."""
    if channels_last(x):
        return x.stride(0), pixel_step(x)
    return x.stride(0), x.stride(1)


def vector(x: Tensor) -> int:
    """Numbers of a row of pixels that a thread loads at once: 16 bytes where size and strides allow it."""
    group = 16 // x.element_size()
    while group > 1 and any(size % group for size in (x.shape[2] * x.shape[3], *strides(x))):
        group //= 2
    return group


def summing_tile(x: Tensor, anatomies: int) -> dict[str, int]:
    """BLOCK_C, LANES and GROUP of the kernels that sum over x: 64 pixels, fewer channels where each has more sums."""
    if channels_last(x):
        return {"BLOCK_C": 64 if anatomies <= 2 else 32, "LANES": 8, "GROUP": 8}
    group = vector(x)
    rows = {8: 32, 4: 32, 2: 16}.get(group, 8)
    return {"BLOCK_C": rows if anatomies <= 2 else max(rows // 2, 8), "LANES": PIXELS // group, "GROUP": group}


def mapping_tile(x: Tensor, last: bool, anatomies: int) -> dict[str, int]:
    """BLOCK_C and BLOCK_S of the kernels that map x element by element: any of them gives the same bits.

    The coefficients of a channel stay in registers, so a thread that holds one pixel of each gets fewer of them.
    """
    few = anatomies <= 4
    if last:
        return {"BLOCK_C": 64 if few else 32, "BLOCK_S": 32}
    return {"BLOCK_C": (32 if few else 16) if vector(x) > 1 else (8 if few else 4), "BLOCK_S": 64}


def strips_of(images: int, channels: int, pixels: int, block_c: int, programs: int = PROGRAMS) -> tuple[int, int]:
    """How many strips the pixels of an image are cut into, and the pixels of each: a function of the shape alone."""
    if pixels < 2 * LEAST_STRIP:
        return 1, pixels
    wanted = min(pixels // LEAST_STRIP, triton.cdiv(programs, images * triton.cdiv(channels, block_c)))
    strip = triton.cdiv(triton.cdiv(pixels, wanted), PIXELS) * PIXELS
    return triton.cdiv(pixels, strip), strip


def on_its_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op, run with the device of its first tensor as the current one: that is where Triton launches."""

    @functools.wraps(op)
    def launch(*args: Any, **kwargs: Any) -> Any:
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        if torch.compiler.is_compiling() or not first.is_cuda or first.device.index == torch.cuda.current_device():
            return op(*args, **kwargs)
        with torch.cuda.device(first.device):
            return op(*args, **kwargs)

    return launch
