"""What the ops share on the host: strides of maps, strips of pixels, tuning, the device of a launch."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from axnet.ops.layouts import channels_last, pixel_step

INTERPRETED = triton.knobs.runtime.interpret

# Sides of the tiles that sum: along the adjacent axis, and across it. Fixed, because they decide the order of the sums.
FAST = 64
LEAST_STRIP = 512  # pixels below which a second strip costs more, in its combining launch, than it brings
PROGRAMS = 1024  # enough to fill the largest GPU several times over


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


def tile_sides(anatomies: int, last: bool) -> dict[str, int]:
    """BLOCK_C and BLOCK_S of the kernels that sum: fewer channels where every one carries more accumulators."""
    across = 16 if anatomies <= 2 else 8
    return {"BLOCK_C": FAST, "BLOCK_S": across} if last else {"BLOCK_C": across, "BLOCK_S": FAST}


def strips_of(images: int, channels: int, pixels: int, block_c: int) -> tuple[int, int]:
    """How many strips the pixels of an image are cut into, and the pixels of each: a function of the shape alone."""
    if pixels < 2 * LEAST_STRIP:
        return 1, pixels
    wanted = min(pixels // LEAST_STRIP, triton.cdiv(PROGRAMS, images * triton.cdiv(channels, block_c)))
    strip = triton.cdiv(triton.cdiv(pixels, wanted), FAST) * FAST
    return triton.cdiv(pixels, strip), strip


def tiles_of(images: int, channels: int, pixels: int, last: bool) -> Callable[[dict[str, int]], tuple[int]]:
    """Grid of a tuned kernel: one program per tile."""

    def grid(meta: dict[str, int]) -> tuple[int]:
        block_c, block_s = (meta["FAST"], meta["SLOW"]) if last else (meta["SLOW"], meta["FAST"])
        return (images * triton.cdiv(channels, block_c) * triton.cdiv(pixels, block_s),)

    return grid


def tuned(sides: tuple[tuple[int, int, int], ...]) -> Callable[[Any], Any]:
    """Autotuner over (FAST, SLOW, warps), for kernels whose bits no tile changes; the interpreter takes the first."""
    configs = [triton.Config({"FAST": fast, "SLOW": slow}, num_warps=warps) for fast, slow, warps in sides]
    decorator: Callable[[Any], Any] = triton.autotune(configs[:1] if INTERPRETED else configs, key=["C", "S", "LAST"])
    return decorator


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
