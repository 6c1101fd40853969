"""Variance of the AUC and the test of two AUCs after DeLong, with whole groups as the unit after Obuchowski."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axnet.metrics import checks
from axnet.metrics.checks import Floats


class DeLongTest(NamedTuple):
    """Comparison of two AUCs on the same images."""

    difference: float
    """AUC of a minus AUC of b."""
    z: float
    """The difference over its standard error."""
    p: float
    """Two-sided probability of a |z| at least as large, were the AUCs equal."""


def delong_test(y_true: ArrayLike, a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> DeLongTest:
    """Two-sided test that two models have the same AUC, on the same images.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. a, b [N]: finite scores. groups [N]: identifiers (patients)
    of any type; rows of a group are then not taken as independent.
    Returns (difference, z, p); z is 0 and p is 1 where both models rank alike, and all three are NaN where the known
    labels are all equal. z and p are NaN where a label is carried by one image or group only.
    Raises ValueError on another shape, other labels, scores that are not finite, or nothing at all.
    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; with groups, Obuchowski, Biometrics 1997.
    """
    y = checks.labels("y_true", y_true, 1)
    s = np.stack([checks.scores("a", a, y), checks.scores("b", b, y)])
    auc, covariance = auc_covariance(y, s, checks.groups(groups, y.size))
    difference = float(auc[0] - auc[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if math.isnan(variance):
        return DeLongTest(difference, math.nan, math.nan)
    if variance <= 1e-15:  # rounding of equal variances: no pair of images tells the models apart
        z = 0.0 if abs(difference) < 1e-9 else math.copysign(math.inf, difference)
    else:
        z = difference / math.sqrt(variance)
    return DeLongTest(difference, z, math.erfc(abs(z) / math.sqrt(2)))


def auc_covariance(y: Floats, s: Floats, groups: NDArray[np.intp] | None = None) -> tuple[Floats, Floats]:
    """AUCs [M] of scores s [M, N] under labels y [N], and their covariance [M, M]; NaN where undefined."""
    undefined = np.full(s.shape[0], np.nan), np.full((s.shape[0], s.shape[0]), np.nan)
    positive, negative = y == 1, y == 0
    if not positive.any() or not negative.any():
        return undefined
    won = np.stack([_share_below(row[positive], row[negative]) for row in s])  # [M, P] negatives below a positive
    lost = np.stack([1 - _share_below(row[negative], row[positive]) for row in s])  # [M, Q] positives above a negative
    auc: Floats = won.mean(axis=1)
    unit = np.arange(y.size) if groups is None else groups
    total = int(unit.max()) + 1
    of_positives = _sums(won - auc[:, None], unit[positive], total)  # [M, G]
    of_negatives = _sums(lost - auc[:, None], unit[negative], total)
    with_positive = np.unique(unit[positive]).size
    with_negative = np.unique(unit[negative]).size
    if with_positive < 2 or with_negative < 2:
        return auc, undefined[1]
    p, q = int(positive.sum()), int(negative.sum())
    units = np.unique(unit[positive | negative]).size
    cross = of_positives @ of_negatives.T
    covariance: Floats = (
        with_positive / (with_positive - 1) * (of_positives @ of_positives.T) / p**2
        + with_negative / (with_negative - 1) * (of_negatives @ of_negatives.T) / q**2
        + units / (units - 1) * (cross + cross.T) / (p * q)
    )
    return auc, covariance


def _share_below(values: Floats, others: Floats) -> Floats:
    # Share of the others below each value, ties counted as one half.
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * others.size)


def _sums(values: Floats, unit: NDArray[np.intp], total: int) -> Floats:
    return np.stack([np.bincount(unit, weights=row, minlength=total) for row in values])
