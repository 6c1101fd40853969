"""Several models as one: the mean of their logits, probabilities or ranks."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import rankdata

from axnet.metrics import checks
from axnet.metrics.checks import Floats

Mean = Literal["logits", "probabilities", "ranks"]
MEANS: tuple[str, ...] = ("logits", "probabilities", "ranks")

_SATURATED = 1e-7  # a probability of 0 or 1 out of float32 has no logit


def ensemble(scores: ArrayLike, mean: Mean = "logits") -> Floats:
    """Scores of several models on the same images as those of one.

    scores [M, N, K]: of M models. mean: what is averaged over the models:
        "logits"         log-odds of the probabilities; the result is a probability
        "probabilities"  the probabilities themselves
        "ranks"          the rank of each image among the N by its score, per model and class, ties sharing theirs; the
                         result lies in (0, 1) and orders the images, but is no probability, so the models' scores need
                         be none either
    Returns float64 [N, K].
    Raises ValueError on another shape, scores that are not finite, values outside [0, 1] where probabilities are
    needed, nothing at all, or another mean.
    """
    s = checks.array("scores", scores, 3)
    if mean not in MEANS:
        raise ValueError(f"mean is {mean!r}, expected one of {MEANS}.")
    if not np.isfinite(s).all():
        raise ValueError(f"scores holds {s[~np.isfinite(s)][0]}, expected finite numbers.")
    if mean == "ranks":
        ranks: Floats = ((rankdata(s, axis=1) - 0.5) / s.shape[1]).mean(0)
        return ranks
    if s.min() < 0 or s.max() > 1:
        strange = s[(s < 0) | (s > 1)][0]
        raise ValueError(f"scores holds {strange:g}, expected probabilities in [0, 1] for mean {mean!r}.")
    if mean == "probabilities":
        return np.asarray(s.mean(0), dtype=np.float64)
    return np.asarray(expit(logit(s.clip(_SATURATED, 1 - _SATURATED)).mean(0)), dtype=np.float64)
