"""Subgroups, and two truths for the same films."""

from __future__ import annotations

import json

import numpy as np
import pytest

from axnet.metrics import age_band, auc_interval, evaluate, label_quality, mean_auc, subgroups

RNG = np.random.default_rng(1)
Y = (RNG.random((200, 3)) < [0.5, 0.3, 0.04]).astype(float)
S = 1 / (1 + np.exp(-(Y + RNG.normal(size=Y.shape))))
NAMES = ("a", "b", "c")
PATIENTS = np.arange(200) // 2
SEX = ["F" if row % 3 else "M" for row in range(200)]


def test_a_subgroup_is_an_evaluation_of_its_films() -> None:
    sex = [None if row < 4 else value for row, value in enumerate(SEX)]
    found = subgroups(Y, S, NAMES, {"sex": sex, "view": ["PA"] * 200}, groups=PATIENTS, resamples=50)
    assert [(part.attribute, part.value) for part in found] == [
        ("sex", "F"),
        ("sex", "M"),
    ]  # one view: nothing to compare
    rows = np.array([value == "F" for value in sex])
    expected = evaluate(Y[rows], S[rows], NAMES, PATIENTS[rows], resamples=50)
    assert found[0].evaluation == expected
    assert expected.few == ("c",)
    assert expected.mean_auc_of_common.value == pytest.approx(mean_auc(Y[rows][:, :2], S[rows][:, :2]))
    assert found[0].elsewhere == pytest.approx(mean_auc(Y[:, :2], S[:, :2]))
    record = json.loads(json.dumps(found[0].to_dict()))
    assert record["fewer_than_15_positives"] == ["c"]
    assert record["samples"] == rows.sum()


def test_a_wrong_number_of_values_is_named() -> None:
    with pytest.raises(ValueError, match=r"attributes\['sex'\] has 3 values, expected 200, one per image"):
        subgroups(Y, S, NAMES, {"sex": ["F", "M", "F"]})


def test_patients_of_any_type_are_checked_as_evaluate_does() -> None:
    mixed = [1, "1"] * 100  # two patients, not one
    sex = ["F", "F", "M", "M"] * 50
    for part in subgroups(Y, S, NAMES, {"sex": sex}, groups=mixed, resamples=20):
        assert part.evaluation.groups == 2
    (one,) = label_quality(Y, S, NAMES, Y[:, :1], ("a",), {}, groups=mixed)
    assert one.auc[0] == auc_interval(Y[:, 0], S[:, 0], groups=[0, 1] * 100)
    for groups, message in (
        ([float("nan"), "b"] * 100, "a group is missing: row 0 has none"),
        (["a"] * 5, r"groups has shape \[5\], expected \[200\]"),
    ):
        with pytest.raises(ValueError, match=message):
            subgroups(Y, S, NAMES, {"sex": sex}, groups=groups)
        with pytest.raises(ValueError, match=message):
            label_quality(Y, S, NAMES, Y[:, :1], ("a",), {}, groups=groups)
    with pytest.raises(ValueError, match=r"classes is \['a', 'b'\], expected 3 different names"):
        label_quality(Y, S, NAMES[:2], Y[:, :1], ("b",), {})


def test_age_bands() -> None:
    assert [age_band(years) for years in (0, 0.5, 17.9, 18, 59, 79.5, 80, 120)] == (
        ["0-17"] * 3 + ["18-39", "40-59", "60-79", "80+", "80+"]
    )
    assert [age_band(years) for years in (-1, 121, 414, float("nan"))] == [None] * 4


def test_mean_over_enough_positives_is_the_mean_where_all_have_them() -> None:
    both = evaluate(Y[:, :2], S[:, :2], NAMES[:2], resamples=50)
    assert both.mean_auc_of_common == both.mean_auc
    assert np.isnan(evaluate(Y[:, 2:], S[:, 2:], NAMES[2:], resamples=50).mean_auc_of_common.value)


def test_two_truths() -> None:
    readings = np.full((200, 3), np.nan)
    readings[:60, 0] = 1 - Y[:60, 0]
    readings[10:90, 1] = ((Y[10:90, 0] + Y[10:90, 1]) > 0).astype(float)
    found = label_quality(Y, S, NAMES, readings, ("a", "a or b", "other"), {"a or b": ("a", "b")}, groups=PATIENTS)
    assert [one.finding for one in found] == ["a", "a or b"]
    assert (found[0].films, found[0].agreement) == (60, 0.0)
    assert found[0].auc[0] == auc_interval(Y[:60, 0], S[:60, 0], groups=PATIENTS[:60])
    assert found[0].auc[1].value == pytest.approx(1 - found[0].auc[0].value)
    assert (found[1].films, found[1].agreement, found[1].scored_by) == (80, 1.0, ("a", "b"))
    assert found[1].auc[0].value == auc_interval(readings[10:90, 1], S[10:90, :2].max(1)).value
    with pytest.raises(ValueError, match=r"adjudicated has shape \[200, 3\], expected \[200, 1\]"):
        label_quality(Y, S, NAMES, readings, ("a",), {})
