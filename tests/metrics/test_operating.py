from __future__ import annotations

import math

import numpy as np
import pytest

from axnet.metrics import calibration_error, fit_temperature, operating_points


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(-1, 2, (20000, 2))
    return (rng.random(true_logits.shape) < 1 / (1 + np.exp(-true_logits))).astype(float), true_logits


def test_the_temperature_that_was_put_in_comes_out(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    y, z = drawn
    assert fit_temperature(y, z * 3) == pytest.approx(3, rel=0.03)
    assert fit_temperature(y, z * [0.5, 2], per_class=True) == pytest.approx([0.5, 2], rel=0.05)


def test_calibration_error_falls_and_unknown_labels_do_not_count(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    y, z = drawn
    temperature = fit_temperature(y, z * 3)
    assert calibration_error(y[:, 0], 1 / (1 + np.exp(-z[:, 0] * 3 / temperature))) < 0.02
    assert calibration_error(y[:, 0], 1 / (1 + np.exp(-z[:, 0] * 3))) > 0.05
    half = np.concatenate([y, np.full_like(y, np.nan)])
    assert fit_temperature(half, np.concatenate([z, -5 * z])) == pytest.approx(fit_temperature(y, z))


@pytest.mark.parametrize(
    ("y", "z", "word"),
    [
        ([[1.0], [1.0]], [[0.1], [2.0]], "one value only"),
        ([[1.0], [0.0]], [[-1.0], [1.0]], "above 0"),
        ([[1.0], [0.0]], [[math.inf], [1.0]], "finite"),
        ([1.0, 0.0], [0.1, 2.0], "dimensions"),
    ],
)
def test_temperature_names_what_is_wrong(y: list, z: list, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        fit_temperature(y, z)


Y = np.array([[0, 0, 0, 0, 1, 0, 1, 1, np.nan]], dtype=float).T
S = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]]).T


@pytest.mark.parametrize(
    ("rule", "target", "threshold", "sensitivity", "specificity", "called"),
    [
        ("youden", None, 0.5, 1.0, 0.8, 500),
        ("sensitivity", 0.9, 0.5, 1.0, 0.8, 500),
        ("sensitivity", 0.6, 0.7, 2 / 3, 1.0, 250),
        ("specificity", 0.9, 0.7, 2 / 3, 1.0, 250),
        ("specificity", 0.5, 0.4, 1.0, 0.6, 625),
        ("prevalence", None, 0.6, 2 / 3, 0.8, 375),
        ("prevalence", 0.125, 0.8, 1 / 3, 1.0, 125),
    ],
)
def test_rules_on_scores_that_can_be_counted(
    rule: str, target: float | None, threshold: float, sensitivity: float, specificity: float, called: float
) -> None:
    (point,) = operating_points(Y, S, rule, target)  # type: ignore[arg-type]
    assert point == pytest.approx((threshold, sensitivity, specificity, called))
    known = ~np.isnan(Y[:, 0])
    assert (S[known, 0] >= point.threshold).sum() / known.sum() * 1000 == pytest.approx(called)


def test_a_rule_that_calls_nothing_has_a_finite_threshold_above_every_score() -> None:
    (point,) = operating_points([[0.0], [0.0], [1.0]], [[0.9], [0.8], [0.1]], "specificity", 0.99)
    assert math.isfinite(point.threshold)
    assert point.threshold > 0.9
    assert point.positives_per_1000 == 0


def test_a_class_with_one_label_has_no_point() -> None:
    assert all(map(math.isnan, operating_points([[0.0], [0.0]], [[0.1], [0.2]])[0]))


@pytest.mark.parametrize(
    ("rule", "target", "word"),
    [
        ("best", None, "youden"),
        ("youden", 0.5, "None"),
        ("sensitivity", None, "to reach"),
        ("specificity", 1.0, "between"),
    ],
)
def test_rules_name_what_is_wrong(rule: str, target: float | None, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        operating_points(Y, S, rule, target)  # type: ignore[arg-type]
