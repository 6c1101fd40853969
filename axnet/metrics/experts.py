"""Readers against a model: their points in the ROC plane, and how many of them lie below the model's curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from axnet.metrics import checks
from axnet.metrics.auc import mean_of
from axnet.metrics.checks import Floats


def expert_points(y_true: ArrayLike, radiologists: ArrayLike) -> Floats:
    """Where binary readings lie in the ROC plane.

    y_true [N, K]: 0, 1, or NaN for unknown, which is left out. radiologists [R, N, K]: 0 or 1.
    Returns [R, K, 2]: false positive rate and true positive rate, each NaN where no image of that label is known.
    Raises ValueError on another shape, other labels, or nothing at all.
    """
    y, readings = _checked(y_true, radiologists)
    rates = np.full((readings.shape[0], y.shape[1], 2), np.nan)
    for value in (0, 1):
        of_value = y == value  # [N, K]
        count = of_value.sum(axis=0)
        called = (readings * of_value).sum(axis=1)  # [R, K]
        np.divide(called, count, out=rates[:, :, value], where=count > 0)
    return rates


def rads_below_curve(y_true: ArrayLike, y_score: ArrayLike, radiologists: ArrayLike) -> tuple[float, Floats]:
    """Number of radiologists below a model's ROC curve, the second measure of the CheXpert leaderboard.

    y_true [N, K]: 0, 1, or NaN for unknown, which is left out. y_score [N, K]: finite scores. radiologists [R, N, K]:
    0 or 1. A radiologist counts where (FPR, TPR) lies strictly below the curve, linear between its points; a curve
    that is vertical at that FPR is taken at its top.
    Returns the mean over the tasks that are defined, and the number per task [K], NaN where a task has one label value.
    Raises ValueError on another shape, other labels, scores that are not finite, or nothing at all.
    Source: Irvin et al., "CheXpert", AAAI 2019; Rajpurkar et al., "CheXternal", arXiv 2102.08660.
    """
    y, readings = _checked(y_true, radiologists)
    s = checks.scores("y_score", y_score, y)
    per_task = np.full(y.shape[1], np.nan)
    for k in range(y.shape[1]):
        known = ~np.isnan(y[:, k])
        truth = y[known, k]
        if truth.size and truth.min() != truth.max():
            per_task[k] = _below(truth, s[known, k], readings[:, known, k]).sum()
    return mean_of(per_task), per_task


def _below(y: Floats, s: Floats, readings: Floats) -> Floats:
    # In counts of images, so that "strictly" is exact: (fp, tp) against the segment from (fp0, tp0) to (fp1, tp1).
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    p, q = int((y == 1).sum()), int((y == 0).sum())
    fps, tps = np.rint(fpr * q), np.rint(tpr * p)
    fp, tp = readings @ (1 - y), readings @ y  # [R]
    start = np.searchsorted(fps, fp, side="right") - 1
    end = np.minimum(start + 1, fps.size - 1)
    run, rise = fps[end] - fps[start], tps[end] - tps[start]
    below = (tp - tps[start]) * np.maximum(run, 1) < rise * (fp - fps[start])
    return np.asarray(below, dtype=np.float64)


def _checked(y_true: ArrayLike, radiologists: ArrayLike) -> tuple[Floats, Floats]:
    y = checks.labels("y_true", y_true, 2)
    readings = checks.labels("radiologists", radiologists, 3, unknown=False)
    if readings.shape[1:] != y.shape:
        raise ValueError(
            f"radiologists has shape {list(readings.shape)}, expected [R, {y.shape[0]}, {y.shape[1]}] "
            f"for y_true of shape {list(y.shape)}."
        )
    return y, readings
