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
    """Mask [height, width] of runs. Raises ValueError for runs outside of it, or out of order."""
    edges = np.frombuffer(data, dtype="<u4").astype(np.int64)
    edges[1::2] += edges[::2]
    lengths = np.diff(edges, prepend=0, append=height * width)  # of what is out and in, by turns
    if lengths.min() < 0:
        raise ValueError(f"runs are out of order or reach beyond the {height} x {width} pixels of the mask.")
    inside = np.zeros(len(lengths), dtype=np.bool_)
    inside[1::2] = True
    return np.asarray(np.repeat(inside, lengths).reshape(height, width))
