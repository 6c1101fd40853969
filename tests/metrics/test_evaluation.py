from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss

from axnet.metrics import (
    auc_interval,
    brier,
    calibration_error,
    evaluate,
    mean_auc_interval,
    sensitivity_at_specificity,
)

CLASSES = ["Effusion", "Mass", "Hernia"]


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = (rng.random((150, 3)) < 0.3).astype(float)
    y[:, 2] = 0
    y[:10, 1] = np.nan
    return y, 1 / (1 + np.exp(-(np.nan_to_num(y) + rng.normal(size=y.shape))))


def test_evaluation_gathers_the_measures(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, s = data
    groups = np.arange(150) // 3
    found = evaluate(y, s, CLASSES, groups=groups, resamples=100)
    effusion, mass, _ = found.classes
    assert found.mean_auc == mean_auc_interval(y, s, groups=groups, resamples=100)
    assert effusion.auc == auc_interval(y[:, 0], s[:, 0], groups=groups)
    assert effusion.average_precision == pytest.approx(average_precision_score(y[:, 0], s[:, 0]))
    assert effusion.brier == pytest.approx(brier_score_loss(y[:, 0], s[:, 0]))
    assert (mass.positives, mass.negatives) == (int(np.nansum(y[:, 1])), 140 - int(np.nansum(y[:, 1])))
    assert mass.average_precision == pytest.approx(average_precision_score(y[10:, 1], s[10:, 1]))
    assert (found.samples, found.groups) == (150, 50)


def test_a_class_with_one_label_value_is_listed_not_hidden(data: tuple[np.ndarray, np.ndarray]) -> None:
    found = evaluate(*data, CLASSES, resamples=50)
    assert found.undefined == ("Hernia",)
    assert [c.name for c in found.classes] == CLASSES
    hernia = found.classes[2]
    assert math.isnan(hernia.auc.value)
    assert math.isnan(hernia.average_precision)
    assert (hernia.positives, hernia.negatives, hernia.defined) == (0, 150, False)


def test_records_are_frozen_and_fit_json_and_tables(data: tuple[np.ndarray, np.ndarray]) -> None:
    found = evaluate(*data, CLASSES, resamples=50)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.samples = 3  # type: ignore[misc]
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["mean_auc"]["value"] == found.mean_auc.value
    assert record["undefined"] == ["Hernia"]
    assert record["classes"][2]["auc"] is None
    rows = found.to_rows()
    assert [row["class"] for row in rows] == CLASSES
    assert rows[0]["auc_low"] == found.classes[0].auc.low


def test_scores_that_are_no_probabilities_have_no_calibration(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, s = data
    logits = np.log(s / (1 - s))
    found = evaluate(y, logits, CLASSES, resamples=50)
    assert math.isnan(found.classes[0].brier)
    assert math.isnan(found.classes[0].calibration_error)
    assert found.mean_auc == pytest.approx(evaluate(y, s, CLASSES, resamples=50).mean_auc)
    with pytest.raises(ValueError, match=r"y_prob has values from .*, expected probabilities in \[0, 1\]"):
        brier(y[:, 0], logits[:, 0])


def test_calibration_error_by_hand() -> None:
    # Bins [0, 1/2) and [1/2, 1]: mean probability 0.2 against 1/2 present (2 images), 0.8 against 1/2 (4 images).
    y = [0, 1, 1, 1, 0, 0, np.nan]
    p = [0.1, 0.3, 0.7, 0.9, 0.6, 1.0, 0.5]
    assert calibration_error(y, p, bins=2) == pytest.approx(2 / 6 * 0.3 + 4 / 6 * 0.3)


def test_a_calibrated_model_has_next_to_no_calibration_error() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(100_000)
    y = rng.random(100_000) < p
    assert calibration_error(y, p) < 0.01
    assert calibration_error(y, p**2) > 0.1


def test_sensitivity_at_specificity_by_hand() -> None:
    y = [0] * 10 + [1] * 4
    s = [*range(10), 8.5, 9.5, 3.5, 0.5]  # the threshold 8.5 leaves one of ten negatives above it
    assert sensitivity_at_specificity(y, s, 0.9) == 0.5
    assert sensitivity_at_specificity(y, s, 0.95) == 0.25
    assert sensitivity_at_specificity(y, s, 0.6) == 0.5
    assert sensitivity_at_specificity(y, s, 0.4) == 0.75
    assert math.isnan(sensitivity_at_specificity([0, 0], [1, 2]))


@pytest.mark.parametrize("measure", [brier, calibration_error])
def test_no_known_label_is_nan(measure: object) -> None:
    assert callable(measure)
    assert math.isnan(measure([np.nan, np.nan], [0.2, 0.3]))


def test_errors_name_the_argument(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, s = data
    with pytest.raises(ValueError, match=r"classes is \['a', 'b'\], expected 3 different names"):
        evaluate(y, s, ["a", "b"])
    with pytest.raises(ValueError, match="expected 3 different names"):
        evaluate(y, s, ["a", "b", "a"])
    with pytest.raises(ValueError, match="level is 2, expected"):
        evaluate(y, s, CLASSES, level=2)
    with pytest.raises(ValueError, match="bins is 0, expected a whole number of at least 1"):
        calibration_error(y[:, 0], s[:, 0], bins=0)
    with pytest.raises(ValueError, match="specificity is 90, expected a number between 0 and 1"):
        sensitivity_at_specificity(y[:, 0], s[:, 0], 90)
