"""Run-length encoding of masks as CheXmask writes it: "start length" pairs, row by row, the first pixel is 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def encode(mask: npt.NDArray[np.bool_]) -> str:
    """Text of a mask [H, W]: "start length start length ..."; empty for an empty mask."""
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected [H, W].")
    flat = np.concatenate(([False], mask.ravel().astype(bool), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack((starts + 1, ends - starts), 1).ravel().tolist()))


def runs(text: str, height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and end pixel, counted from 0, of runs in their order that have no pixel in common.

    Runs that overlap are cut. Raises ValueError for text that is no mask of this size.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"mask text begins {text[:20]!r}, expected pairs of whole numbers.") from error
    if len(numbers) % 2:
        raise ValueError(f"mask text has {len(numbers)} numbers, expected pairs of start and length.")
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    if len(starts) and (starts.min() < 0 or ends.max() > height * width or (ends < starts).any()):
        raise ValueError(f"mask text has runs outside of its {height} x {width} pixels.")
    if (starts[1:] < ends[:-1]).any():
        order = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate(ends[order])
        starts = np.maximum(starts[order], np.concatenate(([0], ends[:-1])))
    return starts, ends


def decode(text: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Mask [height, width] of a text. Raises ValueError as runs does."""
    mask = np.zeros(height * width, dtype=bool)
    starts, ends = runs(text, height, width)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        mask[start:end] = True
    return mask.reshape(height, width)


def coverage(text: str, height: int, width: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Share of every cell of a size [h, w] grid that the mask covers, straight from its runs.

    The same as decoding and averaging over the cells, which may have fractions of pixels; float32 [h, w] in [0, 1].
    Raises ValueError as runs does, and for a size that is not positive.
    """
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected positive cells.")
    starts, ends = runs(text, height, width)
    # runs that go over the end of a row become one run per row
    rows, last = starts // width, np.maximum(ends - 1, starts) // width
    count = last - rows + 1
    which = np.repeat(np.arange(len(starts)), count)
    row = rows[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    left = np.maximum(starts[which] - row * width, 0)
    right = np.minimum(ends[which] - row * width, width)
    across = _overlap(left, right, np.linspace(0, width, size[1] + 1))  # [runs, w] in pixels
    down = _overlap(row, row + 1, np.linspace(0, height, size[0] + 1))  # [runs, h]
    cell = (width / size[1]) * (height / size[0])
    return np.asarray((down.T @ across / cell).clip(0, 1), dtype=np.float32)


def _overlap(
    low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Length of the overlap of every interval [low, high) with every cell between two edges."""
    return (np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])).clip(0)
