from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from axnet.metrics import evaluate
from axnet.report import ModelResult

FINDINGS = ["Effusion", "Mass", "Hernia"]


@dataclass
class Study:
    """A test set of 120 images of 60 patients, and two models on it."""

    y: np.ndarray
    groups: np.ndarray
    models: list[ModelResult]

    @property
    def arguments(self) -> dict[str, object]:
        """What every report needs."""
        return {
            "title": "Test set",
            "description": "Two models.",
            "models": self.models,
            "y_true": self.y,
            "findings": FINDINGS,
        }


@pytest.fixture
def study() -> Study:
    rng = np.random.default_rng(0)
    y = (rng.random((120, 3)) < 0.3).astype(float)
    y[:, 2] = 0
    y[:5, 0] = np.nan
    groups = np.arange(120) // 2
    models = []
    for name, shift in (("Anatomy-XNet", 1.5), ("DenseNet-121", 1.3)):
        scores = 1 / (1 + np.exp(-(shift * np.nan_to_num(y) + rng.normal(size=y.shape))))
        models.append(ModelResult(name, evaluate(y, scores, FINDINGS, groups=groups, resamples=100), scores))
    return Study(y, groups, models)
