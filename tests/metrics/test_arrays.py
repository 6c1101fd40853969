from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from axnet import metrics
from axnet.metrics import auc_interval, roc_auc

Y = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1]], dtype=float)
S = np.array([[0.25, 0.5], [0.5, 0.25], [0.75, 0.75], [0.125, 0.5], [0.375, 0.625], [0.5, 0.875]])
READINGS = np.array([Y, 1 - Y, np.ones_like(Y)])
IDS = [1, 2, 2, 3, 4, 4]

METRICS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "roc_auc": lambda y, s, c: [metrics.roc_auc(c(Y[:, 0]), c(S[:, 0]))],
    "mean_auc": lambda y, s, c: [metrics.mean_auc(y, s)],
    "delong_test": lambda y, s, c: metrics.delong_test(c(Y[:, 0]), c(S[:, 0]), c(S[:, 1]), c(np.array(IDS))),
    "auc_interval": lambda y, s, c: metrics.auc_interval(c(Y[:, 0]), c(S[:, 0]), groups=c(np.array(IDS))),
    "bootstrap": lambda y, s, c: metrics.auc_interval(c(Y[:, 0]), c(S[:, 0]), method="bootstrap", resamples=20),
    "mean_auc_interval": lambda y, s, c: metrics.mean_auc_interval(y, s, groups=c(np.array(IDS)), resamples=20),
    "auc_difference": lambda y, s, c: metrics.auc_difference(y, s, c(S[::-1].copy()), resamples=20),
    "auc_difference of one": lambda y, s, c: metrics.auc_difference(c(Y[:, 0]), c(S[:, 0]), c(S[:, 1]), resamples=20),
    "brier": lambda y, s, c: [metrics.brier(c(Y[:, 0]), c(S[:, 0]))],
    "calibration_error": lambda y, s, c: [metrics.calibration_error(c(Y[:, 0]), c(S[:, 0]))],
    "sensitivity": lambda y, s, c: [metrics.sensitivity_at_specificity(c(Y[:, 0]), c(S[:, 0]))],
    "expert_points": lambda y, s, c: metrics.expert_points(y, c(READINGS)).ravel(),
    "rads_below_curve": lambda y, s, c: metrics.rads_below_curve(y, s, c(READINGS))[1],
    "evaluate": lambda y, s, c: list(metrics.evaluate(y, s, "ab", c(np.array(IDS)), resamples=20).mean_auc),
}

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor with a gradient": lambda a: torch.tensor(a, requires_grad=a.dtype.kind == "f"),
    "tensor of bfloat16": lambda a: torch.tensor(a, dtype=torch.bfloat16 if a.dtype.kind == "f" else None),
    "tensor of half": lambda a: torch.tensor(a, dtype=torch.float16 if a.dtype.kind == "f" else None),
    "list of tensors": lambda a: list(torch.tensor(a, requires_grad=a.dtype.kind == "f")),
    "list of lists of tensors": lambda a: [list(row) if row.ndim else row for row in torch.tensor(a)],
    "tuple": lambda a: tuple(a.tolist()),
    "object array": lambda a: a.astype(object),
    "pandas": lambda a: a if a.ndim == 3 else pd.Series(a) if a.ndim == 1 else pd.DataFrame(a),
    "nullable pandas": lambda a: (
        a if a.ndim == 3 else (pd.Series(a) if a.ndim == 1 else pd.DataFrame(a)).convert_dtypes()
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_measure_takes_every_kind_of_array(metric: str, form: str) -> None:
    make = FORMS[form]
    expected = METRICS[metric](Y, S, lambda a: a)
    assert list(METRICS[metric](make(Y), make(S), make)) == pytest.approx(list(expected), nan_ok=True)


@pytest.mark.parametrize(
    "unknown",
    [
        np.array([0, 1, 1, np.nan]),
        [0, 1, 1, None],
        np.array([0, 1, 1, None], dtype=object),
        torch.tensor([0, 1, 1, float("nan")], dtype=torch.bfloat16),
        pd.Series([0, 1, 1, None], dtype="Int64"),
        pd.Series([False, True, True, None], dtype="boolean"),
        [0, 1, 1, pd.NA],
        np.ma.array([0, 1, 1, 1], mask=[0, 0, 0, 1]),
    ],
)
def test_missing_labels_of_any_kind_are_left_out(unknown: Any) -> None:
    assert roc_auc(unknown, [0.1, 0.2, 0.9, 0.0]) == 1.0
    assert metrics.brier(unknown, [0.0, 1.0, 0.5, 0.0]) == pytest.approx(0.25 / 3)


@pytest.mark.parametrize("label", [-1, 2, 0.5, math.inf])
@pytest.mark.parametrize("metric", ["roc_auc", "brier", "calibration_error", "sensitivity_at_specificity"])
def test_other_labels_are_named(metric: str, label: float) -> None:
    with pytest.raises(ValueError, match=rf"y_true holds the label {label:g}, expected 0, 1 or NaN"):
        getattr(metrics, metric)([0, 1, label], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "values", [["no", "yes"], np.array([1j, 0]), [[0], [0, 1]], [object(), 1], pd.Series(["absent", "present"])]
)
def test_what_is_no_numbers(values: Any) -> None:
    with pytest.raises(ValueError, match="y_true is not an array of numbers"):
        roc_auc(values, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"y_true is not an array of numbers .*\[N\] or \[N, K\]"):
        metrics.auc_difference(values, [0.1, 0.2], [0.1, 0.2])


def low(groups: Any) -> float:
    return auc_interval([0, 1, 1, 0], [0.1, 0.2, 0.9, 0.3], groups=groups).low


@pytest.mark.parametrize(
    "groups",
    [
        np.array([1, "a", "a", 2], dtype=object),
        [1, "a", "a", 2],
        [1, "1", "1", 2],
        ("x", 2.5, 2.5, 7),
        [("p", 1), ("q", 1), ("q", 1), ("q", 2)],
        [b"x", "y", "y", None.__class__],
        torch.tensor([4, 5, 5, 6]),
        list(torch.tensor([4, 5, 5, 6])),
        pd.Series(["x", "y", "y", "z"]),
        pd.Series(["x", "y", "y", "z"], dtype="string"),
        pd.Series(["x", "y", "y", "z"], dtype="category"),
        pd.Series([7, 8, 8, 9], dtype="Int64"),
        pd.to_datetime(pd.Series(["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"])),
        np.array([0.5, 1.5, 1.5, 2.5]),
    ],
)
def test_groups_of_any_types(groups: Any) -> None:
    assert low(groups) == pytest.approx(low([1, 2, 2, 3]))
    assert low([1, 2, 2, 3]) != pytest.approx(low(None), abs=1e-3)


@pytest.mark.parametrize(
    "groups",
    [
        ["p1", None, "p2", "p2"],
        [math.nan, 1.0, 1.0, math.nan],
        ["p1", math.nan, "p2", "p2"],
        np.array(["p1", None, "p2", 3], dtype=object),
        np.array([math.nan, 1.0, 1.0, 2.0]),
        ["p1", "", "p2", "p2"],
        pd.Series(["p1", None, "p2", "p2"]),
        pd.Series(["p1", None, "p2", "p2"], dtype="string"),
        pd.Series(["p1", None, "p2", "p2"], dtype="category"),
        pd.Series([1, None, 2, 2], dtype="Int64"),
        pd.to_datetime(pd.Series(["2020-01-01", None, "2020-01-02", "2020-01-03"])),
        np.ma.array([1, 2, 2, 3], mask=[1, 0, 0, 0]),
        torch.tensor([math.nan, 1.0, 1.0, 2.0]),
    ],
)
@pytest.mark.parametrize("metric", ["interval", "bootstrap", "difference", "mean", "delong", "evaluate"])
def test_a_missing_group_is_an_error(groups: Any, metric: str) -> None:
    y, s = np.array([0, 1, 1, 0]), np.array([0.1, 0.2, 0.9, 0.3])
    run = {
        "interval": lambda: auc_interval(y, s, groups=groups),
        "bootstrap": lambda: auc_interval(y, s, groups=groups, method="bootstrap"),
        "difference": lambda: metrics.auc_difference(y, s, s, groups=groups),
        "mean": lambda: metrics.mean_auc_interval(y[:, None], s[:, None], groups=groups),
        "delong": lambda: metrics.delong_test(y, s, s, groups=groups),
        "evaluate": lambda: metrics.evaluate(y[:, None], s[:, None], "a", groups=groups),
    }
    with pytest.raises(ValueError, match=r"a group is missing: row [01] has none"):
        run[metric]()


def test_groups_of_another_shape() -> None:
    for strange, shape in ((["a"], r"\[1\]"), ([["a"], ["b"], ["c"], ["d"]], r"\[4, 1\]"), ("abcd", r"\[\]")):
        with pytest.raises(ValueError, match=rf"groups has shape {shape}, expected \[4\]"):
            low(strange)
    with pytest.raises(ValueError, match="groups holds what cannot be compared"):
        low([{}, 1, 1, "x"])


def test_whole_numbers_that_float64_would_make_equal() -> None:
    assert roc_auc([0, 1], np.array([2**53 - 1, 2**53])) == 1.0
    whole = np.array([2**60, 2**60 + 1])
    for close in (
        *(whole, torch.tensor([-(2**60) - 1, -(2**60)]), np.array([0, 2**64 - 1], "u8")),
        *(whole.tolist(), pd.Series(whole), pd.Series([2**60, 2**60 + 1], dtype="Int64"), [0.5, 2**53 + 1]),
        np.ma.array(whole, mask=[False, False]),
    ):
        with pytest.raises(
            ValueError, match=r"y_score is not an array of numbers \(it holds whole numbers beyond 2\^53"
        ):
            roc_auc([0, 1], close)
    assert roc_auc([0, 1], [2.0**60, 2.0**61]) == 1.0  # floating numbers are what they are


def test_a_tensor_without_values() -> None:
    with pytest.raises(ValueError, match=r"y_score is not an array of numbers .*on the device meta"):
        roc_auc([0, 1], torch.empty(2, device="meta"))
