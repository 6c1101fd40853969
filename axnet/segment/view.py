"""Whether a film is the frontal one that its organs were sought on: what lies between the lungs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

LATERAL = "no mediastinum between the lungs, as on a lateral film"
# Brightness between the lungs above that of the lungs, as a share of the film's range: 16 of 7,898 frontal films lie
# between these (docs/segmentation.md), and of their negatives, which are flagged as such, one in twenty.
_NEGATIVE, _FRONTAL = -0.12, 0.05


def is_lateral(film: npt.NDArray[Any], masks: npt.NDArray[np.bool_]) -> bool:
    """Whether the mediastinum is missing between two lungs that were found.

    On a frontal film the spine, the heart and the great vessels are a bright band between the lungs; on a lateral one
    the lungs lie over one another and the spine behind both. film: [H, W]; masks: [3, H, W] in the order of ORGANS.
    False where nothing lies between the lungs or one is missing: what was drawn is then no chest of either kind.
    """
    return _NEGATIVE < mediastinum(film, masks) < _FRONTAL


def mediastinum(film: npt.NDArray[Any], masks: npt.NDArray[np.bool_]) -> float:
    """How much brighter the film [H, W] is between the lungs than in them, as a share of its range from -1 to 1.

    The mean over the rows that have both lungs of masks [3, H, W], the heart left out of the lungs; nan where no row
    has something between them, or all of the film is of one grey.
    """
    left, right, heart = masks
    width = film.shape[1]
    blurred = ndimage.gaussian_filter(film.astype(np.float32), film.shape[0] / 64)
    low, high = np.percentile(blurred, [1, 99])
    column = np.arange(width)
    begin = width - right[:, ::-1].argmax(1)[:, None]  # the patient's right lung is on the left-hand side
    end = left.argmax(1)[:, None]
    between = (column >= begin) & (column < end)
    lungs = (left | right) & ~heart
    rows = left.any(1) & right.any(1) & lungs.any(1) & (between.sum(1) > 1)
    if not rows.any() or high <= low:
        return math.nan
    inside, outside = ((blurred * part).sum(1)[rows] / part.sum(1)[rows] for part in (between, lungs))
    return float((inside - outside).mean() / (high - low))
