"""Masks in few bytes: where the runs of pixels begin and how long they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TRUE = np.bool_(True)


def encode(mask: npt.NDArray[np.bool_]) -> bytes:
    """The runs of a mask [H, W], row by row: pairs of first pixel, counted from 0, and length, uint32 little endian."""
    flat = np.zeros(mask.size + 2, dtype=np.int8)
    flat[1:-1] = mask.ravel()
    edges = np.flatnonzero(np.diff(flat))
    return np.stack((edges[::2], edges[1::2] - edges[::2]), 1).astype("<u4").tobytes()


def decode(data: Any, height: int, width: int, inside: np.bool_ | np.uint8 = TRUE) -> npt.NDArray[Any]:
    """Mask [height, width] of runs (bytes, or a buffer of them), with this value inside and 0 outside.

    Raises ValueError for runs outside of the mask, or out of order.
    """
    edges = np.frombuffer(data, dtype="<u4").astype(np.int64)
    edges[1::2] += edges[::2]
    ends = np.empty(len(edges) + 2, dtype=np.int64)
    ends[0], ends[1:-1], ends[-1] = 0, edges, height * width
    lengths = ends[1:] - ends[:-1]  # of what is out and in, by turns
    if lengths.min() < 0:
        raise ValueError(f"runs are out of order or reach beyond the {height} x {width} pixels of the mask.")
    values = np.zeros(len(lengths), dtype=inside.dtype)
    values[1::2] = inside
    return np.repeat(values, lengths).reshape(height, width)
