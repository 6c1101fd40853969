"""Calibration: temperature and operating points that a checkpoint keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from axnet.metrics import operating_points
from axnet.models import Calibration, DenseNetGAP, Preprocessing, load_classifier, save_classifier

GIVEN = Calibration(
    temperature=2.0,
    thresholds=(0.25, None, 1.0),
    sensitivity=(0.5, None, 0.1),
    specificity=(0.9, None, 1.0),
    positives_per_1000=(100.0, None, 1.0),
    rule="by hand",
    films="none",
)


def test_probabilities_and_calls() -> None:
    logits = torch.tensor([[0.0, 4.0, -4.0], [-2.2, 0.0, 90.0]])
    probabilities = GIVEN.probabilities(logits)
    torch.testing.assert_close(probabilities, torch.sigmoid(logits / 2))
    assert GIVEN.calls(probabilities) == [[True, None, False], [False, None, True]]
    edge = torch.full((1, 3), 0.25)
    assert GIVEN.calls(edge) == [[True, None, False]]  # so much or more


def test_films_of_probability_one_are_left_uncalled() -> None:
    """The highest specificity, where negatives are surely positive, calls nothing: its threshold is just above 1."""
    (point,) = operating_points([[0.0], [0.0], [1.0]], [[1.0], [1.0], [0.1]], "specificity", 0.99)
    chosen = replace(GIVEN, thresholds=(point.threshold, None, 1.0))
    assert chosen.calls(chosen.probabilities(torch.tensor([[200.0, 0.0, 200.0]]))) == [[False, None, True]]
    assert Calibration.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_it_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    model, file = DenseNetGAP(3, backbone="tiny"), tmp_path / "a.safetensors"
    save_classifier(file, model, Preprocessing(size=32), ("a", "b", "c"), calibration=GIVEN)
    assert load_classifier(file)[1].calibration == GIVEN
    save_classifier(file, model, Preprocessing(size=32), ("a", "b", "c"))
    assert load_classifier(file)[1].calibration is None
    four = DenseNetGAP(4, backbone="tiny")
    with pytest.raises(ValueError, match="calibration has 3 thresholds for 4 classes"):
        save_classifier(file, four, Preprocessing(size=32), ("a", "b", "c", "d"), calibration=GIVEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, expected a positive number"),
        ({"thresholds": (0.25, None, 1.5)}, "thresholds has 1.5, expected probabilities"),
        ({"thresholds": (0.25, 0.5, 1.0)}, "sensitivity is .* expected a number where thresholds"),
        ({"specificity": (0.9, None)}, "specificity is .* expected a number where thresholds"),
    ],
)
def test_what_is_none(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GIVEN, **change)
