"""Masks in few bytes: where the runs of pixels begin and how long they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def encode(mask: npt.NDArray[np.bool_]) -> bytes:
    """The runs of a mask [H, W], row by row: pairs of first pixel, counted from 0, and length, uint32 little endian."""
    flat = np.zeros(mask.size + 2, dtype=np.int8)
    flat[1:-1] = mask.ravel()
    edges = np.flatnonzero(np.diff(flat))
    return np.stack((edges[::2], edges[1::2] - edges[::2]), 1).astype("<u4").tobytes()


def decode(data: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Mask [height, width] of runs. Raises ValueError for runs outside of it."""
    pairs = np.frombuffer(data, dtype="<u4").reshape(-1, 2).astype(np.int64)
    ends = pairs.sum(1)
    if len(pairs) and ends.max() > height * width:
        raise ValueError(f"runs reach pixel {ends.max()}, expected at most {height * width}.")
    steps = np.zeros(height * width + 1, dtype=np.int8)
    steps[pairs[:, 0]] = 1
    steps[ends] -= 1
    return np.asarray(np.cumsum(steps[:-1], dtype=np.int8).reshape(height, width).view(np.bool_))
