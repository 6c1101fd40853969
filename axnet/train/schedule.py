"""Learning rates over a run, as shares of the peak."""

from __future__ import annotations

import math


def cosine(progress: float) -> float:
    """Share of the peak learning rate after a share of the run: from 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def one_cycle(progress: float, rise: float = 0.2) -> float:
    """As cosine, after a rise from 1/25 over the first share of the run (Smith, 2018)."""
    if progress < rise:
        return 1 - 0.96 * cosine(progress / rise)
    return cosine((progress - rise) / (1 - rise))
