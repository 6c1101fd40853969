"""The area under the ROC curve, of one class and as the mean over classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from axnet.metrics import checks
from axnet.metrics.checks import Floats


def roc_auc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve of one class.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. y_score [N]: finite numbers, larger means more likely.
    Returns the area, ties counted as one half; NaN where the known labels are all equal.
    Raises ValueError on another shape, other labels, scores that are not finite, or nothing at all.
    """
    y = checks.labels("y_true", y_true, 1)
    return auc_of(y, checks.scores("y_score", y_score, y))


def mean_auc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean of the areas under the ROC curves of K classes.

    y_true [N, K] and y_score [N, K] as in roc_auc. Returns the mean over the classes whose area is defined; NaN where
    none is. Raises ValueError as roc_auc does.
    """
    y = checks.labels("y_true", y_true, 2)
    return mean_of(aucs_of(y, checks.scores("y_score", y_score, y)))


def auc_of(y: Floats, s: Floats) -> float:
    """roc_auc of checked arrays [N]."""
    known = ~np.isnan(y)
    y = y[known]
    if y.size == 0 or y.min() == y.max():
        return float("nan")
    return float(roc_auc_score(y, s[known]))


def aucs_of(y: Floats, s: Floats) -> Floats:
    """roc_auc of every column of checked arrays [N, K], as [K]."""
    return np.array([auc_of(y[:, k], s[:, k]) for k in range(y.shape[1])])


def mean_of(values: Floats) -> float:
    """Mean of the values that are defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
