"""The cardiothoracic ratio of organ masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cardiothoracic_ratio(masks: npt.NDArray[np.bool_]) -> float:
    """Widest extent of the heart over that of both lungs, in columns; masks: bool [3,H,W]. nan when one is empty."""
    heart = np.flatnonzero(masks[2].any(axis=0))
    thorax = np.flatnonzero((masks[0] | masks[1]).any(axis=0))
    if not len(heart) or not len(thorax):
        return float("nan")
    return float((heart[-1] - heart[0] + 1) / (thorax[-1] - thorax[0] + 1))
