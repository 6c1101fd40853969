"""Measures of one class at a threshold or of its probabilities: Brier score, calibration error, sensitivity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import brier_score_loss, roc_curve

from axnet.metrics import checks


def brier(y_true: ArrayLike, y_prob: ArrayLike) -> float:
    """Mean squared difference of probability and label of one class; 0 is best.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. y_prob [N]: probabilities in [0, 1].
    Returns NaN where no label is known.
    Raises ValueError on another shape, other labels, values outside [0, 1], or nothing at all.
    """
    y = checks.labels("y_true", y_true, 1)
    p = checks.scores("y_prob", y_prob, y, probability=True)
    known = ~np.isnan(y)
    return float(brier_score_loss(y[known], p[known], pos_label=1)) if known.any() else float("nan")


def calibration_error(y_true: ArrayLike, y_prob: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of one class: mean gap of probability and frequency over bins of equal width.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. y_prob [N]: probabilities in [0, 1]. bins: how many.
    Returns the mean of |mean probability - frequency| weighted by the images in each bin; NaN where no label is known.
    Raises ValueError on another shape, other labels, values outside [0, 1], nothing at all, or no bins.
    Source: Naeini et al., AAAI 2015, on the probability of the positive label.
    """
    y = checks.labels("y_true", y_true, 1)
    p = checks.scores("y_prob", y_prob, y, probability=True)
    bins = checks.at_least("bins", bins, 1)
    known = ~np.isnan(y)
    if not known.any():
        return float("nan")
    index = np.minimum((p[known] * bins).astype(np.intp), bins - 1)
    return float(np.abs(np.bincount(index, weights=p[known] - y[known], minlength=bins)).sum() / known.sum())


def sensitivity_at_specificity(y_true: ArrayLike, y_score: ArrayLike, specificity: float = 0.9) -> float:
    """Largest sensitivity of one class at a threshold whose specificity is at least the one asked for.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. y_score [N]: finite scores. specificity: in (0, 1).
    Returns NaN where the known labels are all equal.
    Raises ValueError on another shape, other labels, scores that are not finite, or nothing at all.
    """
    y = checks.labels("y_true", y_true, 1)
    s = checks.scores("y_score", y_score, y)
    specificity = checks.fraction("specificity", specificity)
    known = ~np.isnan(y)
    if not (y == 0).any() or not (y == 1).any():
        return float("nan")
    fpr, tpr, _ = roc_curve(y[known], s[known], drop_intermediate=False)
    return float(tpr[1 - fpr >= specificity - 1e-12].max())
