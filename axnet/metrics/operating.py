"""From scores to decisions: a temperature that calibrates logits, and thresholds that make calls."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from axnet.metrics import checks
from axnet.metrics.checks import Floats

Rule = Literal["youden", "sensitivity", "specificity", "prevalence"]
RULES: tuple[str, ...] = ("youden", "sensitivity", "specificity", "prevalence")


class OperatingPoint(NamedTuple):
    """A threshold of one class, and what it did on the data it was chosen on; all NaN where a label is missing."""

    threshold: float
    """A score of this or more is called positive."""
    sensitivity: float
    specificity: float
    positives_per_1000: float
    """Films called positive of 1,000 like these."""


def fit_temperature(y_true: ArrayLike, logits: ArrayLike, *, per_class: bool = False) -> float | NDArray[np.float64]:
    """Temperature T under which sigmoid(logit / T) fits the labels best, by maximum likelihood.

    y_true [N, K]: 0, 1, or NaN for unknown, which is left out. logits [N, K]: finite. per_class: one temperature per
    class instead of one over all known labels. Choose it on validation films, never on the films it is judged by.
    Returns T > 0 as a float, or [K] with per_class; ranks and AUCs stay as they are.
    Raises ValueError on another shape, other labels, logits that are not finite, nothing at all, one label value only,
    or logits that rank the labels no better than chance, for which no temperature above 0 is best.
    Source: Guo et al., ICML 2017; fitted as scikit-learn's LogisticRegression of one slope and no intercept.
    """
    y = checks.labels("y_true", y_true, 2)
    z = checks.scores("logits", logits, y)
    if per_class:
        return np.array([_temperature(y[:, k], z[:, k], f"logits of column {k}") for k in range(y.shape[1])])
    return _temperature(y.ravel(), z.ravel(), "logits")


def _temperature(y: Floats, z: Floats, name: str) -> float:
    known = ~np.isnan(y)
    y, z = y[known], z[known]
    if np.unique(y).size < 2:
        raise ValueError(f"{name} have known labels of one value only, expected both 0 and 1 to fit a temperature.")
    slope = float(LogisticRegression(C=np.inf, fit_intercept=False, max_iter=1000).fit(z[:, None], y).coef_[0, 0])
    if not slope > 0:
        raise ValueError(f"{name} fit their labels best with the slope {slope:.3g}, expected one above 0.")
    return 1 / slope


def operating_points(
    y_true: ArrayLike, y_score: ArrayLike, rule: Rule = "youden", target: float | None = None
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold per class.

    y_true [N, K]: 0, 1, or NaN for unknown, which is left out. y_score [N, K]: finite scores. rule:
        "youden"       the largest sensitivity + specificity - 1
        "sensitivity"  the highest threshold whose sensitivity is at least target
        "specificity"  the lowest threshold whose specificity is at least target
        "prevalence"   the lowest threshold that calls no more films positive than are: those known to be, or the
                       share `target` of all
    Returns K OperatingPoints; NaN for a class without both labels.
    Raises ValueError on another shape, other labels, scores that are not finite, nothing at all, an unknown rule, or a
    target that the rule does not take.
    """
    y = checks.labels("y_true", y_true, 2)
    s = checks.scores("y_score", y_score, y)
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {RULES}.")
    if rule == "youden" and target is not None:
        raise ValueError(f"target is {target!r}, expected None with rule 'youden'.")
    if rule in ("sensitivity", "specificity") and target is None:
        raise ValueError(f"target is None, expected the {rule} to reach, between 0 and 1.")
    wanted = None if target is None else checks.fraction("target", target)
    return tuple(_point(y[:, k], s[:, k], rule, wanted) for k in range(y.shape[1]))


def _point(y: Floats, s: Floats, rule: str, target: float | None) -> OperatingPoint:
    known = ~np.isnan(y)
    y, s = y[known], s[known]
    if np.unique(y).size < 2:
        return OperatingPoint(*[float("nan")] * 4)
    # thresholds fall from infinity (nothing positive) to the smallest score; both rates rise
    fpr, tpr, thresholds = roc_curve(y, s, drop_intermediate=False)
    share = y.mean()
    called = share * tpr + (1 - share) * fpr
    tiny = 1e-12
    if rule == "youden":
        at = int(np.argmax(tpr - fpr))
    elif rule == "sensitivity":
        at = int(np.argmax(tpr >= (target or 0) - tiny))
    elif rule == "specificity":
        at = int(np.flatnonzero(1 - fpr >= (target or 0) - tiny)[-1])
    else:
        at = int(np.flatnonzero(called <= (share if target is None else target) + tiny)[-1])
    # infinity does not survive JSON; the next number above the scores calls as few
    threshold = thresholds[at] if np.isfinite(thresholds[at]) else np.nextafter(s.max(), np.inf)
    return OperatingPoint(float(threshold), float(tpr[at]), float(1 - fpr[at]), float(1000 * called[at]))
