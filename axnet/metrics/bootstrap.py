"""Bootstrap of the AUC: a resample is a vector of integer weights, so one ranking of the scores serves all of them.

With negatives sorted by score and C their cumulated weights, a positive of weight w beats C(below) + 1/2 C(tied), and
the AUC of a resample is the sum of w times that over (weight of positives) x (weight of negatives).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from axnet.metrics.checks import Floats

_CHUNK = 2_000_000  # values of one block of weights, 16 MB
_LEAST_DEFINED = 0.1  # share of the resamples that must hold both labels for a quantile to be given


class Ranking:
    """The scores of one class, ranked once; auc(weights) is then two gathers and a cumulated sum."""

    def __init__(self, y: Floats, s: Floats) -> None:
        """Rank checked labels y [N] (NaN left out) and scores s [N]."""
        negatives = np.flatnonzero(y == 0)
        self.positives = np.flatnonzero(y == 1)
        self.negatives = negatives[np.argsort(s[negatives], kind="stable")]
        self.below = np.searchsorted(s[self.negatives], s[self.positives], side="left")
        self.up_to = np.searchsorted(s[self.negatives], s[self.positives], side="right")

    def auc(self, weights: Floats) -> Floats:
        """AUC under each column of weights [N, R], as [R]; NaN where a label has no weight."""
        positive = weights[self.positives]  # [P, R]
        cumulated = np.zeros((self.negatives.size + 1, weights.shape[1]))  # [Q + 1, R]
        np.cumsum(weights[self.negatives], axis=0, out=cumulated[1:])
        beaten = (cumulated[self.below] + cumulated[self.up_to]) / 2  # [P, R]
        pairs = positive.sum(axis=0) * cumulated[-1]
        return np.divide(
            np.einsum("pr,pr->r", positive, beaten), pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0
        )


def _weights(samples: int, groups: NDArray[np.intp] | None, seed: int, resamples: int) -> Iterator[Floats]:
    # Whole groups are drawn with replacement, as many as there are; without groups every row is its own.
    units = samples if groups is None else int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // samples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, units, size=(size, units)) * size + np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=units * size).reshape(units, size).astype(np.float64)
        yield counts if groups is None else counts[groups]


def resampled_aucs(
    y: Floats, scores: list[Floats], groups: NDArray[np.intp] | None, seed: int, resamples: int
) -> Floats:
    """AUCs of each of M score arrays [N, K] under the same resamples, as [M, K, resamples]; NaN for a single group."""
    if groups is not None and not groups.any():  # every draw would be the whole: an interval of no width
        return np.full((len(scores), y.shape[1], resamples), np.nan)
    rankings = [[Ranking(y[:, k], s[:, k]) for k in range(y.shape[1])] for s in scores]
    blocks = [
        [[ranking.auc(weights) for ranking in row] for row in rankings]
        for weights in _weights(y.shape[0], groups, seed, resamples)
    ]
    return np.concatenate([np.array(block) for block in blocks], axis=-1)


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """The central `level` of values [R], those undefined left out; NaN where fewer than a tenth are defined."""
    defined = values[~np.isnan(values)]
    if defined.size < _LEAST_DEFINED * values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
