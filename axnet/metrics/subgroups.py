"""A model on parts of a test set: by sex, age, view or whatever else is known of the films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from axnet.metrics import arrays, checks
from axnet.metrics.auc import aucs_of, mean_of
from axnet.metrics.evaluation import Evaluation, as_json, evaluate

AGE_BANDS: tuple[tuple[int, int], ...] = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 120))
"""First and last year of each band; an age of more is none."""


@dataclass(frozen=True)
class Subgroup:
    """A model on the films that share a value of an attribute.

    evaluation: on these films; its mean_auc_of_common is over the findings with enough positives among them.
    elsewhere: the mean AUC over the same findings on all films, so that the two differ by the films alone.
    """

    attribute: str
    value: str
    evaluation: Evaluation
    elsewhere: float

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        found = {"attribute": self.attribute, "value": self.value, **self.evaluation.to_dict()}
        return found | {"all_films_same_findings": as_json(self.elsewhere)}


def subgroups(
    y_true: ArrayLike,
    y_score: ArrayLike,
    classes: Sequence[str],
    attributes: Mapping[str, Sequence[str | None]],
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    probabilities: bool = True,
) -> tuple[Subgroup, ...]:
    """Evaluate a model by subgroup, each as axnet.metrics.evaluate does.

    attributes: name to N values; None, NaN and "" stand for unknown, and such films are in no subgroup of it. An
    attribute that has one value only is left out. The rest as evaluate takes it.
    Returns the subgroups by attribute, in the order of their values. Raises ValueError as evaluate does, or where an
    attribute has another number of values than there are images.
    """
    y = checks.labels("y_true", y_true, 2)
    s = checks.scores("y_score", y_score, y)
    names = checks.names("classes", classes, y)
    units = checks.groups(groups, y.shape[0])
    every = aucs_of(y, s)
    found = []
    for attribute, given in attributes.items():
        if len(given) != y.shape[0]:
            raise ValueError(
                f"attributes[{attribute!r}] has {len(given)} values, expected {y.shape[0]}, one per image."
            )
        values = np.array(["" if arrays.missing(value) else str(value) for value in given], dtype=object)
        there = sorted(set(values) - {""})
        if len(there) < 2:
            continue
        for value in there:
            rows = values == value
            own = None if units is None else units[rows]
            evaluation = evaluate(y[rows], s[rows], names, own, seed, resamples, level, probabilities)
            common = [k for k, name in enumerate(names) if name not in evaluation.few]
            found.append(Subgroup(attribute, value, evaluation, mean_of(every[common])))
    return tuple(found)


def age_band(years: float) -> str | None:
    """The band of AGE_BANDS that an age in years is in, such as "40-59"; None for an unknown or impossible age."""
    for first, last in AGE_BANDS:
        if first <= years < last + 1:
            return f"{first}-{last}" if last < AGE_BANDS[-1][1] else f"{first}+"
    return None
