"""Calls of a model at its operating points, counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from axnet.metrics.checks import Floats


class Thresholds(Protocol):
    """What a report reads of axnet.models.Calibration."""

    @property
    def thresholds(self) -> tuple[float | None, ...]: ...  # noqa: D102
    @property
    def positives_per_1000(self) -> tuple[float | None, ...]: ...  # noqa: D102
    @property
    def rule(self) -> str: ...  # noqa: D102
    @property
    def films(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Confusion:
    """rows: a mapping per finding; rule, films: how and on what the thresholds were chosen, empty for 0.5."""

    rows: list[dict[str, Any]]
    rule: str
    films: str


def confusion(y: Floats, probabilities: Floats, findings: Sequence[str], chosen: Thresholds | None) -> Confusion:
    """Count calls of K findings; labels y [N, K] may be NaN. chosen: the operating points, None for 0.5 throughout."""
    limits = (0.5,) * len(findings) if chosen is None else chosen.thresholds
    expected = (None,) * len(findings) if chosen is None else chosen.positives_per_1000
    rows: list[dict[str, Any]] = []
    for k, finding in enumerate(findings):
        known = ~np.isnan(y[:, k])
        limit = limits[k]
        if limit is None or not known.any():
            lacks = "operating point: too few films to choose one by" if limit is None else "film with a known label"
            rows.append({"finding": finding, "threshold": None, "lacks": lacks})
            continue
        called, truth = probabilities[known, k] >= limit, y[known, k] == 1
        tp, fp = int((called & truth).sum()), int((called & ~truth).sum())
        fn, tn = int((~called & truth).sum()), int((~called & ~truth).sum())
        rows.append(
            {
                "finding": finding,
                "threshold": limit,
                "tp": tp,
                "fn": fn,
                "fp": fp,
                "tn": tn,
                "sensitivity": tp / (tp + fn) if tp + fn else math.nan,
                "specificity": tn / (tn + fp) if tn + fp else math.nan,
                "precision": tp / (tp + fp) if tp + fp else math.nan,
                "called": 1000 * (tp + fp) / int(known.sum()),
                "expected": math.nan if expected[k] is None else expected[k],
            }
        )
    return Confusion(rows, "" if chosen is None else chosen.rule, "" if chosen is None else chosen.films)
