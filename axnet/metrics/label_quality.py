"""A model under two truths: the labels of its data set, and those of radiologists on the same films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from axnet.metrics import checks
from axnet.metrics.evaluation import LEAST_POSITIVES, as_json
from axnet.metrics.interval import Interval, auc_interval


@dataclass(frozen=True)
class LabelQuality:
    """One finding under two truths, on the films that have both.

    scored_by: the findings whose largest score stands for it. positives, auc: by the set's labels, then by the
    radiologists'. agreement: share of the films on which the two are equal.
    """

    finding: str
    scored_by: tuple[str, ...]
    films: int
    positives: tuple[int, int]
    agreement: float
    auc: tuple[Interval, Interval]

    @property
    def few(self) -> bool:
        """Whether either truth has fewer than LEAST_POSITIVES positives."""
        return min(self.positives) < LEAST_POSITIVES

    def to_dict(self) -> dict[str, Any]:
        """The measures as JSON takes them."""
        return {
            "finding": self.finding,
            "scored_by": list(self.scored_by),
            "films": self.films,
            "agreement": self.agreement,
            "positives": {"set": self.positives[0], "radiologists": self.positives[1]},
            "auc": {"set": as_json(self.auc[0]), "radiologists": as_json(self.auc[1])},
        }


def label_quality(
    y_true: ArrayLike,
    y_score: ArrayLike,
    classes: Sequence[str],
    adjudicated: ArrayLike,
    columns: Sequence[str],
    made_of: Mapping[str, Sequence[str]],
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> tuple[LabelQuality, ...]:
    """AUC by the labels of a set and by those of radiologists, on the films that have both.

    y_true, y_score [N, K]: as axnet.metrics.evaluate takes them, with K names in classes. adjudicated [N, C]: 0, 1, or
    NaN for a film that was not read again, with C names in columns. A column is compared with the class of its name, or
    with the classes that made_of gives for it: present where any of these is, scored by the largest of their scores.
    groups [N]: identifiers (patients), the independent units.
    Returns one entry per column that has a counterpart and a film. Raises ValueError as evaluate does.
    """
    y = checks.labels("y_true", y_true, 2)
    s = checks.scores("y_score", y_score, y)
    names = checks.names("classes", classes, y)
    units = checks.groups(groups, y.shape[0])
    readings = checks.labels("adjudicated", adjudicated, 2)
    if readings.shape != (y.shape[0], len(columns)):
        raise ValueError(
            f"adjudicated has shape {list(readings.shape)}, expected [{y.shape[0]}, {len(columns)}], a row per image "
            "and one of columns per label."
        )
    found = []
    for column, reading in zip(columns, readings.T, strict=True):
        taken = [names.index(name) for name in made_of.get(column, (column,)) if name in names]
        if not taken:
            continue
        own = y[:, taken]
        truth = np.where((own == 1).any(1), 1.0, np.where(np.isnan(own).any(1), np.nan, 0.0))
        known = ~np.isnan(truth) & ~np.isnan(reading)
        if not known.any():
            continue
        both = truth[known], reading[known]
        own_units = None if units is None else units[known]
        score = s[:, taken].max(1)[known]
        found.append(
            LabelQuality(
                finding=column,
                scored_by=tuple(names[k] for k in taken),
                films=int(known.sum()),
                positives=(int(both[0].sum()), int(both[1].sum())),
                agreement=float((both[0] == both[1]).mean()),
                auc=(
                    auc_interval(both[0], score, level, groups=own_units),
                    auc_interval(both[1], score, level, groups=own_units),
                ),
            )
        )
    return tuple(found)
