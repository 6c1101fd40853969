"""The cardiothoracic ratio of organ masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Line = tuple[int, int, int]
"""First column, one past the last, and the row at which to draw it."""


def cardiothoracic_ratio(masks: npt.NDArray[np.bool_]) -> float:
    """Widest extent of the heart over that of both lungs, in columns; masks: bool [3,H,W]. nan when one is empty."""
    lines = cardiothoracic_lines(masks)
    if lines is None:
        return float("nan")
    (left, right, _), (first, last, _) = lines
    return float((right - left) / (last - first))


def cardiothoracic_lines(masks: npt.NDArray[np.bool_]) -> tuple[Line, Line] | None:
    """The widths of heart and thorax that the ratio compares, each at the height midway between its two ends.

    masks: bool [3,H,W] in the order of ORGANS. None when one is empty.
    """
    heart, thorax = _extent(masks[2]), _extent(masks[0] | masks[1])
    return None if heart is None or thorax is None else (heart, thorax)


def _extent(mask: npt.NDArray[np.bool_]) -> Line | None:
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return None
    first, last = int(columns[0]), int(columns[-1])
    heights = [np.flatnonzero(mask[:, column]).mean() for column in (first, last)]
    return first, last + 1, round(sum(heights) / 2)
