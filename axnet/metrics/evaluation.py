"""All measures of a model on a test set, in one frozen record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score

from axnet.metrics import calibration, checks
from axnet.metrics.checks import Floats
from axnet.metrics.interval import UNDEFINED, Interval, delong_interval, mean_intervals

SPECIFICITY = 0.9
LEAST_POSITIVES = 15
"""With fewer positives the AUC of a class says little, and its interval is wide."""


@dataclass(frozen=True)
class ClassEvaluation:
    """Measures of one class; NaN where undefined."""

    name: str
    positives: int
    negatives: int
    auc: Interval
    """AUC with its interval after DeLong, by groups where they were given."""
    average_precision: float
    brier: float
    """NaN where the scores are not probabilities."""
    calibration_error: float
    """NaN where the scores are not probabilities."""
    sensitivity: float
    """Sensitivity at a specificity of 90 %."""

    @property
    def defined(self) -> bool:
        """Whether both labels occur, so that the class has an AUC."""
        return self.positives > 0 and self.negatives > 0


@dataclass(frozen=True)
class Evaluation:
    """Measures of a model on N images of G groups: per class, and the mean AUC over the classes that have one."""

    classes: tuple[ClassEvaluation, ...]
    mean_auc: Interval
    """Mean AUC with its percentile bootstrap interval."""
    level: float
    """Coverage of the intervals."""
    samples: int
    groups: int | None
    """Number of groups (patients) that were taken as units; None where images were."""
    mean_auc_of_common: Interval = UNDEFINED
    """Mean AUC over the classes with at least LEAST_POSITIVES positives, with its interval; NaN where none has."""

    @property
    def undefined(self) -> tuple[str, ...]:
        """Names of the classes with one label value; the mean AUC leaves them out."""
        return tuple(c.name for c in self.classes if not c.defined)

    @property
    def few(self) -> tuple[str, ...]:
        """Names of the classes with fewer than LEAST_POSITIVES positives, or without a negative."""
        return tuple(c.name for c in self.classes if c.positives < LEAST_POSITIVES or not c.defined)

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat mapping per class, as for a table or a CSV file; floats may be NaN."""
        return [
            {
                "class": c.name,
                "positives": c.positives,
                "negatives": c.negatives,
                "auc": c.auc.value,
                "auc_low": c.auc.low,
                "auc_high": c.auc.high,
                "average_precision": c.average_precision,
                "brier": c.brier,
                "calibration_error": c.calibration_error,
                "sensitivity_at_90_specificity": c.sensitivity,
            }
            for c in self.classes
        ]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it: mappings, lists, numbers, and None in place of NaN."""
        return {
            "samples": self.samples,
            "groups": self.groups,
            "level": self.level,
            "mean_auc": as_json(self.mean_auc),
            "mean_auc_of_common": as_json(self.mean_auc_of_common),
            "undefined": list(self.undefined),
            f"fewer_than_{LEAST_POSITIVES}_positives": list(self.few),
            "classes": [{name: as_json(value) for name, value in row.items()} for row in self.to_rows()],
        }


def evaluate(
    y_true: ArrayLike,
    y_score: ArrayLike,
    classes: Sequence[str],
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    probabilities: bool = True,
) -> Evaluation:
    """Evaluate the scores of K classes on N images.

    y_true [N, K]: 0, 1, or NaN for unknown, which is left out of that class. y_score [N, K]: finite; Brier score and
    calibration error are given for the classes whose scores lie in [0, 1]. classes: K names. groups [N]: identifiers
    (patients) of any type, taken as the independent units of every interval. seed, resamples: of the bootstrap of the
    mean AUC. level: coverage of the intervals. probabilities: whether scores in [0, 1] are any; those of ranks are not.
    A class with one label value is kept, with NaN for its AUC, and listed in Evaluation.undefined.
    Raises ValueError on another shape, other labels, scores that are not finite, nothing at all, a number of names
    other than K, names that repeat, or a level outside (0, 1).
    """
    y = checks.labels("y_true", y_true, 2)
    s = checks.scores("y_score", y_score, y)
    names = checks.names("classes", classes, y)
    level = checks.fraction("level", level)
    units = checks.groups(groups, y.shape[0])
    common = ((y == 1).sum(0) >= LEAST_POSITIVES) & (y == 0).any(0)
    mean, of_common = mean_intervals(y, s, level, units, seed, resamples, [np.ones_like(common), common])
    return Evaluation(
        classes=tuple(
            _evaluate_class(name, y[:, k], s[:, k], units, level, probabilities) for k, name in enumerate(names)
        ),
        mean_auc=mean,
        mean_auc_of_common=of_common,
        level=level,
        samples=y.shape[0],
        groups=None if units is None else int(units.max()) + 1,
    )


def _evaluate_class(
    name: str, y: Floats, s: Floats, units: NDArray[np.intp] | None, level: float, probabilities: bool
) -> ClassEvaluation:
    known = ~np.isnan(y)
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    probabilities = probabilities and s.min() >= 0 and s.max() <= 1
    return ClassEvaluation(
        name=name,
        positives=positives,
        negatives=negatives,
        auc=delong_interval(y, s, level, units),
        average_precision=float(average_precision_score(y[known], s[known])) if positives and negatives else math.nan,
        brier=calibration.brier(y, s) if probabilities else math.nan,
        calibration_error=calibration.calibration_error(y, s) if probabilities else math.nan,
        sensitivity=calibration.sensitivity_at_specificity(y, s, SPECIFICITY),
    )


def as_json(value: Any) -> Any:
    """A value as JSON takes it: None for NaN, a mapping for an Interval."""
    if isinstance(value, Interval):
        return {name: as_json(part) for name, part in value._asdict().items()}
    return None if isinstance(value, float) and math.isnan(value) else value
