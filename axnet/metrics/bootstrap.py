"""Bootstrap of the AUC: a resample counts how often each group was drawn, so one ranking of the scores serves all.

With negatives sorted by score and C their cumulated weights, a positive of weight w beats C(below) + 1/2 C(tied), and
the AUC of a resample is the sum of w times that over (weight of positives) x (weight of negatives). C is needed at the
positives alone: negatives between two of them are summed at once, out of the counts of the groups, by a sparse product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from axnet.metrics.checks import Floats

_CHUNK = 2_000_000  # values of one block of counts, 16 MB
_LEAST_DEFINED = 0.1  # share of the resamples that must hold both labels for a quantile to be given


class Ranking:
    """The scores of one class, ranked once; auc(counts) is then two sparse products and a cumulated sum."""

    def __init__(self, y: Floats, s: Floats, unit: NDArray[np.intp] | None = None) -> None:
        """Rank checked labels y [N] (NaN left out) and scores s [N]; unit [N]: the group of each, None for its own."""
        unit = np.arange(y.size) if unit is None else unit
        units = int(unit.max()) + 1
        positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
        negative = negative[np.argsort(s[negative], kind="stable")]
        ends = [np.searchsorted(s[negative], s[positive], side=side) for side in ("left", "right")]
        # positives with the same negatives below and tied are one row; a segment of negatives lies between two ends
        (below, up_to), row = np.unique(np.stack(ends), axis=1, return_inverse=True)
        edges = np.unique(np.concatenate((below, up_to, [negative.size])))
        segment = np.searchsorted(edges, np.arange(negative.size), side="right")
        self.below, self.up_to = np.searchsorted(edges, below), np.searchsorted(edges, up_to)
        self.positives = _counted(row.ravel(), unit[positive], (below.size, units))  # [P, U]
        self.negatives = _counted(segment, unit[negative], (edges.size, units))  # [E, U]

    def auc(self, counts: Floats) -> Floats:
        """AUC under each column of counts [U, R], as [R]; NaN where a label has no weight."""
        positive = self.positives @ counts  # [P, R]
        cumulated = np.cumsum(self.negatives @ counts, axis=0)  # [E, R], up to each edge
        beaten = (cumulated[self.below] + cumulated[self.up_to]) / 2  # [P, R]
        pairs = positive.sum(axis=0) * cumulated[-1]
        return np.divide(
            np.einsum("pr,pr->r", positive, beaten), pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0
        )


def _counted(row: NDArray[np.intp], unit: NDArray[np.intp], shape: tuple[int, int]) -> csr_array:
    """How many images of each unit lie in each row."""
    return csr_array((np.ones(row.size), (row, unit)), shape=shape)


def _counts(units: int, samples: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each unit is drawn, as many being drawn with replacement as there are, in blocks [U, R]."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // samples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, units, size=(size, units)) * size + np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=units * size).reshape(units, size).astype(np.float64)


def resampled_aucs(
    y: Floats, scores: list[Floats], groups: NDArray[np.intp] | None, seed: int, resamples: int
) -> Floats:
    """AUCs of each of M score arrays [N, K] under the same resamples, as [M, K, resamples]; NaN for a single group.

    groups [N]: whole groups are drawn; without them every row is its own.
    """
    if groups is not None and not groups.any():  # every draw would be the whole: an interval of no width
        return np.full((len(scores), y.shape[1], resamples), np.nan)
    units = y.shape[0] if groups is None else int(groups.max()) + 1
    rankings = [[Ranking(y[:, k], s[:, k], groups) for k in range(y.shape[1])] for s in scores]
    blocks = [
        [[ranking.auc(counts) for ranking in row] for row in rankings]
        for counts in _counts(units, y.shape[0], seed, resamples)
    ]
    return np.concatenate([np.array(block) for block in blocks], axis=-1)


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """The central `level` of values [R], those undefined left out; NaN where fewer than a tenth are defined."""
    defined = values[~np.isnan(values)]
    if defined.size < _LEAST_DEFINED * values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
