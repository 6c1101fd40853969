from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import axnet.metrics
from axnet.metrics import delong_test, mean_auc, roc_auc
from axnet.metrics.bootstrap import Ranking, resampled_aucs
from axnet.metrics.delong import auc_covariance

NAN = float("nan")


def pairs_covariance(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and DeLong's covariance from the full table of pairs: DeLong et al. 1988, equations (4) to (6)."""
    x, z = scores[:, y == 1], scores[:, y == 0]
    psi = (x[:, :, None] > z[:, None, :]) + 0.5 * (x[:, :, None] == z[:, None, :])
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    covariance = np.atleast_2d(np.cov(v10)) / x.shape[1] + np.atleast_2d(np.cov(v01)) / z.shape[1]
    return psi.mean(axis=(1, 2)), covariance


@pytest.fixture
def two_models() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    y = (rng.random(120) < 0.3).astype(float)
    common = rng.normal(size=120)
    scores = np.stack([y + common + rng.normal(size=120), 0.5 * y + common + rng.normal(size=120)])
    return y, np.round(scores, 1)  # rounding makes ties


def test_auc_is_that_of_sklearn_and_leaves_unknown_labels_out(two_models: tuple[np.ndarray, np.ndarray]) -> None:
    y, (a, _) = two_models
    assert roc_auc(y, a) == pytest.approx(roc_auc_score(y, a))
    unknown = y.copy()
    unknown[:20] = NAN
    assert roc_auc(unknown, a) == pytest.approx(roc_auc_score(y[20:], a[20:]))


@pytest.mark.parametrize("y", [[0, 0, 0], [1, 1, 1], [NAN, NAN, NAN], [1, NAN, 1]])
def test_auc_of_one_label_value_is_nan(y: list[float]) -> None:
    assert math.isnan(roc_auc(y, [0.1, 0.2, 0.3]))


def test_mean_auc_leaves_undefined_classes_out() -> None:
    y = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]])
    s = np.array([[0.1, 0.3, 0.9], [0.2, 0.1, 0.8], [0.15, 0.2, 0.2], [0.9, 0.2, 0.7]])
    assert mean_auc(y, s) == pytest.approx((1.0 + 0.5) / 2)
    assert math.isnan(mean_auc(y[:, 1:2], s[:, 1:2]))


def test_delong_by_hand() -> None:
    # Positives 0.8, 0.4; negatives 0.5, 0.2, 0.3. Won by each positive: 1, 2/3. Lost by each negative: 1/2, 1, 1.
    # AUC 5/6; S10 = 1/18, S01 = 1/12; variance = (1/18) / 2 + (1/12) / 3 = 1/18.
    auc, covariance = auc_covariance(np.array([1.0, 1, 0, 0, 0]), np.array([[0.8, 0.4, 0.5, 0.2, 0.3]]))
    assert auc[0] == pytest.approx(5 / 6)
    assert covariance[0, 0] == pytest.approx(1 / 18)


def test_delong_is_that_of_the_table_of_pairs(two_models: tuple[np.ndarray, np.ndarray]) -> None:
    y, scores = two_models
    auc, covariance = auc_covariance(y, scores)
    expected_auc, expected = pairs_covariance(y, scores)
    np.testing.assert_allclose(auc, expected_auc, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)
    contrast = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
    found = delong_test(y, *scores)
    assert found.difference == pytest.approx(expected_auc[0] - expected_auc[1])
    assert found.z == pytest.approx(found.difference / math.sqrt(contrast))
    assert found.p == pytest.approx(2 * (1 - 0.5 * (1 + math.erf(abs(found.z) / math.sqrt(2)))))


def test_groups_of_one_change_nothing_and_copies_add_nothing(two_models: tuple[np.ndarray, np.ndarray]) -> None:
    y, scores = two_models
    _, alone = auc_covariance(y, scores)
    _, singles = auc_covariance(y, scores, np.arange(y.size))
    np.testing.assert_allclose(singles, alone, rtol=1e-10)
    # Every patient three times: with patients as units the variance is that of the patients once.
    _, copies = auc_covariance(np.tile(y, 3), np.tile(scores, 3), np.tile(np.arange(y.size), 3))
    np.testing.assert_allclose(copies, alone, rtol=1e-10)
    _, blind = auc_covariance(np.tile(y, 3), np.tile(scores, 3))
    assert blind[0, 0] < 0.4 * alone[0, 0]


def test_patients_with_both_labels_covary() -> None:
    # An image with and one without the finding per patient, moved together by the patient: against a jackknife that
    # leaves whole patients out. The two images' scores go along, so the variance is far below that of strangers.
    rng = np.random.default_rng(0)
    y = np.tile([1.0, 0.0], 150)
    patients = np.repeat(np.arange(150), 2)
    s = y + np.repeat(rng.normal(size=150), 2) + 0.5 * rng.normal(size=300)
    _, covariance = auc_covariance(y, s[None], patients)
    left_out = np.array([roc_auc(y[patients != g], s[patients != g]) for g in range(150)])
    jackknife = 149 / 150 * ((left_out - left_out.mean()) ** 2).sum()
    assert covariance[0, 0] == pytest.approx(jackknife, rel=0.03)
    _, strangers = auc_covariance(y, s[None])
    assert covariance[0, 0] < 0.6 * strangers[0, 0]


def test_delong_test_of_equal_rankings_and_of_degenerate_labels(two_models: tuple[np.ndarray, np.ndarray]) -> None:
    y, (a, _) = two_models
    assert delong_test(y, a, 2 * a + 1) == (0.0, 0.0, 1.0)
    assert all(math.isnan(v) for v in delong_test([0, 0, 0], [1, 2, 3], [3, 2, 1]))
    one = delong_test([1, 0, 0], [1, 2, 0], [3, 2, 1])
    assert one.difference == -0.5
    assert math.isnan(one.p)


def test_weighted_auc_is_that_of_repeated_rows(two_models: tuple[np.ndarray, np.ndarray]) -> None:
    y, (a, _) = two_models
    y = y.copy()
    y[:7] = NAN
    weights = np.random.default_rng(0).integers(0, 4, size=(y.size, 5)).astype(float)
    found = Ranking(y, a).auc(weights)
    for column in range(5):
        times = weights[:, column].astype(int)
        assert found[column] == pytest.approx(roc_auc(np.repeat(y, times), np.repeat(a, times)), abs=1e-12)


MONOTONE = [
    lambda s: 3 * s - 7,
    lambda s: s**3,
    np.arctan,
    np.exp2,
    lambda s: -1 / (s + 21),
]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-20, 20), st.integers(-20, 20)), min_size=2, max_size=60),
    change=st.sampled_from(MONOTONE),
)
def test_only_the_order_of_the_scores_counts(
    rows: list[tuple[int, int, int]], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    y, a, b = np.array(rows, dtype=float).T
    moved = change(a)
    np.testing.assert_equal(roc_auc(y, moved), roc_auc(y, a))
    np.testing.assert_equal(delong_test(y, moved, b), delong_test(y, a, b))
    both, columns = np.stack([y, 1 - y], 1), [np.stack([s, b], 1) for s in (moved, a)]
    np.testing.assert_equal(*(mean_auc(both, scores) for scores in columns))
    assert roc_auc(y, -moved) == pytest.approx(1 - roc_auc(y, a), abs=1e-15, nan_ok=True)


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [
        ([0, 1, 1], [0.1, 0.2], r"y_score has shape \[2\], expected that of y_true, \[3\]"),
        ([0, 1, -1], [0.1, 0.2, 0.3], r"y_true holds the label -1, expected 0, 1 or NaN"),
        ([0, 1, 0.5], [0.1, 0.2, 0.3], "y_true holds the label 0.5"),
        ([0, 1, 1], [0.1, NAN, 0.3], "y_score holds nan, expected finite numbers"),
        ([0, 1, 1], [0.1, math.inf, 0.3], "y_score holds inf, expected finite numbers"),
        ([], [], r"y_true is empty \(shape \[0\]\)"),
        ([[0, 1]], [[0.1, 0.2]], r"y_true has shape \[1, 2\], expected 1 dimensions \[N\]"),
        (["yes", "no"], [0.1, 0.2], "y_true is not an array of numbers"),
    ],
)
def test_errors_name_the_argument(y: list[float], s: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_auc(y, s)


def test_the_package_imports_neither_torch_nor_matplotlib_itself() -> None:
    for file in Path(axnet.metrics.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "matplotlib", "pandas"}


def test_resamples_of_groups_are_those_of_repeated_rows() -> None:
    # the plain way: the rows of every group drawn, one after another, to scikit-learn
    rng = np.random.default_rng(3)
    y = (rng.random((120, 3)) < [0.5, 0.2, 0.05]).astype(float)
    y[rng.random(y.shape) < 0.05] = NAN
    s = np.round(y.clip(0) * 0.4 + rng.random(y.shape), 1)  # many ties
    s[np.isnan(s)] = 0.5
    groups = rng.integers(0, 40, 120)
    number = np.unique(groups, return_inverse=True)[1]
    found = resampled_aucs(y, [s], number, 7, 25)[0]
    units = int(number.max()) + 1
    for column, draw in enumerate(np.random.default_rng(7).integers(0, units, size=(25, units))):
        rows = np.concatenate([np.flatnonzero(number == unit) for unit in draw])
        for k in range(3):
            assert found[k, column] == pytest.approx(roc_auc(y[rows, k], s[rows, k]), abs=1e-12, nan_ok=True)
