"""Confidence intervals of AUCs, of their mean over classes, and of the difference of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axnet.metrics import checks
from axnet.metrics.auc import auc_of, aucs_of, mean_of
from axnet.metrics.bootstrap import percentiles, resampled_aucs
from axnet.metrics.checks import Floats
from axnet.metrics.delong import auc_covariance

Method = Literal["delong", "bootstrap"]


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    """The estimate on the data as they are."""
    low: float
    """Lower end; NaN where the data do not give one."""
    high: float
    """Upper end; NaN where the data do not give one."""


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def auc_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    level: float = 0.95,
    method: Method = "delong",
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """AUC of one class with its confidence interval.

    y_true [N]: 0, 1, or NaN for unknown, which is left out. y_score [N]: finite scores. level: coverage in (0, 1).
    method: "delong", normal on the logit scale, deterministic; or "bootstrap", percentiles of `resamples` draws from
    `seed`. groups [N]: identifiers (patients) of any type, taken as the independent units: DeLong's variance becomes
    Obuchowski's, the bootstrap draws whole groups. Where DeLong's variance is zero or undefined (all pairs ranked
    right, one image or group of a label), the interval is Newcombe's, which needs their numbers only.
    Returns Interval(value, low, high), all NaN where the known labels are all equal.
    Raises ValueError on another shape, other labels, scores that are not finite, nothing at all, a level outside
    (0, 1), or an unknown method.
    Source: DeLong et al., Biometrics 1988; Obuchowski, Biometrics 1997; Newcombe (method 5), Stat. Med. 2006.
    """
    y = checks.labels("y_true", y_true, 1)
    s = checks.scores("y_score", y_score, y)
    level = checks.fraction("level", level)
    units = checks.groups(groups, y.size)
    if method == "delong":
        return delong_interval(y, s, level, units)
    if method != "bootstrap":
        raise ValueError(f"method is {method!r}, expected 'delong' or 'bootstrap'.")
    drawn = resampled_aucs(y[:, None], [s[:, None]], units, seed, checks.at_least("resamples", resamples, 1))
    return _around(auc_of(y, s), drawn[0, 0], level)


def mean_auc_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Mean AUC over K classes with its percentile bootstrap interval; images are drawn with all their labels.

    y_true [N, K] and y_score [N, K] as in auc_interval. groups [N]: identifiers (patients), drawn whole.
    Classes with one label value are left out of the mean. A draw that leaves a remaining class with one label value is
    left out; where fewer than a tenth of the draws remain, low and high are NaN.
    Raises ValueError as auc_interval does.
    """
    y = checks.labels("y_true", y_true, 2)
    s = checks.scores("y_score", y_score, y)
    level = checks.fraction("level", level)
    units = checks.groups(groups, y.shape[0])
    return mean_intervals(y, s, level, units, seed, resamples, [np.ones(y.shape[1], dtype=np.bool_)])[0]


def mean_intervals(
    y: Floats,
    s: Floats,
    level: float,
    groups: NDArray[np.intp] | None,
    seed: int,
    resamples: int,
    parts: Sequence[NDArray[np.bool_]],
) -> list[Interval]:
    """mean_auc_interval of checked arrays [N, K] over each of several parts [K] of the classes, of the same draws."""
    aucs = aucs_of(y, s)
    defined = ~np.isnan(aucs)
    if not defined.any():
        return [UNDEFINED] * len(parts)
    resamples = checks.at_least("resamples", resamples, 1)
    drawn = resampled_aucs(y[:, defined], [s[:, defined]], groups, seed, resamples)[0]
    return [
        _around(mean_of(aucs[part]), drawn[part[defined]].mean(axis=0), level) if part[defined].any() else UNDEFINED
        for part in parts
    ]


def auc_difference(
    y_true: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Difference of the mean AUCs of two models, a minus b, with its paired percentile bootstrap interval.

    y_true, score_a, score_b: [N, K], or [N] for one class, as in auc_interval; both models see the same draws.
    groups [N]: identifiers (patients), drawn whole. Undefined classes and draws are treated as in mean_auc_interval.
    Raises ValueError as auc_interval does.
    """
    y = checks.labels("y_true", y_true, checks.dimensions("y_true", y_true))
    a = checks.scores("score_a", score_a, y).reshape(y.shape[0], -1)
    b = checks.scores("score_b", score_b, y).reshape(y.shape[0], -1)
    y = y.reshape(y.shape[0], -1)
    level = checks.fraction("level", level)
    units = checks.groups(groups, y.shape[0])
    differences = aucs_of(y, a) - aucs_of(y, b)
    defined = ~np.isnan(differences)
    if not defined.any():
        return UNDEFINED
    resamples = checks.at_least("resamples", resamples, 1)
    drawn = resampled_aucs(y[:, defined], [a[:, defined], b[:, defined]], units, seed, resamples)
    return _around(mean_of(differences), (drawn[0] - drawn[1]).mean(axis=0), level)


def delong_interval(y: Floats, s: Floats, level: float, groups: NDArray[np.intp] | None) -> Interval:
    """auc_interval by DeLong of checked arrays [N]."""
    aucs, covariance = auc_covariance(y, s[None], groups)
    auc, variance = float(aucs[0]), float(covariance[0, 0])
    if math.isnan(auc):
        return Interval(auc, auc, auc)
    z = NormalDist().inv_cdf((1 + level) / 2)
    if not variance > 1e-15 or not 0 < auc < 1:
        unit = np.arange(y.size) if groups is None else groups
        return Interval(auc, *_newcombe(auc, np.unique(unit[y == 1]).size, np.unique(unit[y == 0]).size, z))
    logit = math.log(auc / (1 - auc))
    half = z * math.sqrt(variance) / (auc * (1 - auc))
    return Interval(auc, _expit(logit - half), _expit(logit + half))


def _newcombe(auc: float, p: int, q: int, z: float) -> tuple[float, float]:
    # The ends solve |auc - t| = z sqrt(V(t)), V the variance of Hanley and McNeil with (p + q) / 2 of each label.
    more = (p + q) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / (p * q)
        return abs(auc - t) - z * math.sqrt(variance)

    def end(outer: float) -> float:
        inner = auc
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if excess(middle) > 0 else (middle, outer)
        return (inner + outer) / 2

    return (end(0.0) if auc > 0 else 0.0), (end(1.0) if auc < 1 else 1.0)


def _expit(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t > -700 else 0.0


def _around(value: float, drawn: Floats, level: float) -> Interval:
    return Interval(value, *percentiles(drawn, level))
