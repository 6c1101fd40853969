from __future__ import annotations

import math
import time
from statistics import NormalDist

import numpy as np
import pytest

from axnet.metrics import auc_difference, auc_interval, mean_auc, mean_auc_interval, roc_auc
from axnet.metrics.delong import auc_covariance

NAN = float("nan")


def sample(seed: int, n: int = 200, k: int = 4, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, k)) < 0.3).astype(float)
    return y, shift * y + rng.normal(size=(n, k))


def test_delong_interval_is_symmetric_on_the_logit_scale() -> None:
    y, s = (a[:, 0] for a in sample(0))
    value, low, high = auc_interval(y, s, level=0.9)
    _, covariance = auc_covariance(y, s[None])
    half = NormalDist().inv_cdf(0.95) * math.sqrt(covariance[0, 0]) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    assert value == pytest.approx(roc_auc(y, s))
    assert math.log(low / (1 - low)) == pytest.approx(logit - half)
    assert math.log(high / (1 - high)) == pytest.approx(logit + half)


def test_bootstrap_and_delong_agree() -> None:
    y, s = (a[:, 0] for a in sample(1, n=600))
    delong = auc_interval(y, s)
    drawn = auc_interval(y, s, method="bootstrap", resamples=2000)
    assert drawn.value == pytest.approx(delong.value)
    assert drawn.low == pytest.approx(delong.low, abs=0.006)
    assert drawn.high == pytest.approx(delong.high, abs=0.006)


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_coverage(method: str) -> None:
    # The AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2); 400 runs at 90 % leave a standard error of 1.5 %.
    truth = NormalDist().cdf(1 / math.sqrt(2))
    hits = 0
    for seed in range(400):
        y, s = (a[:, 0] for a in sample(seed, n=80, k=1))
        interval = auc_interval(y, s, level=0.9, method=method, resamples=200)  # type: ignore[arg-type]
        hits += interval.low <= truth <= interval.high
    assert 0.84 < hits / 400 < 0.95


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_coverage_needs_the_groups(method: str) -> None:
    # Each patient comes four times with the same truth and nearly the same score.
    truth = NormalDist().cdf(1 / math.sqrt(2))
    patients = np.repeat(np.arange(50), 4)
    hits = {True: 0, False: 0}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        y = (rng.random(50) < 0.4).astype(float)[patients]
        s = y + rng.normal(size=50)[patients] + 1e-3 * rng.normal(size=200)
        for grouped in hits:
            groups = patients if grouped else None
            interval = auc_interval(y, s, level=0.9, method=method, groups=groups, resamples=200)  # type: ignore[arg-type]
            hits[grouped] += interval.low <= truth <= interval.high
    assert hits[True] / 150 > 0.82
    assert hits[False] / 150 < 0.72


def test_the_mean_has_its_own_interval() -> None:
    y, s = sample(2)
    interval = mean_auc_interval(y, s, resamples=500)
    widths = [auc_interval(y[:, k], s[:, k]).high - auc_interval(y[:, k], s[:, k]).low for k in range(4)]
    assert interval.value == pytest.approx(mean_auc(y, s))
    # Four independent classes: the mean is about twice as sharp as one of them.
    assert interval.high - interval.low == pytest.approx(np.mean(widths) / 2, rel=0.2)


def test_the_difference_is_paired() -> None:
    y, s = sample(3)
    near = s + 0.05 * np.random.default_rng(0).normal(size=s.shape)
    value, low, high = auc_difference(y, s, near)
    assert value == pytest.approx(mean_auc(y, s) - mean_auc(y, near))
    assert low <= value <= high
    mean = mean_auc_interval(y, s)
    assert high - low < 0.2 * (mean.high - mean.low)
    worse = auc_difference(y, s, s[::-1])
    assert worse.low > 0
    assert auc_difference(y, s, s) == (0, 0, 0)


def test_the_difference_of_one_class_takes_vectors() -> None:
    y, s = sample(5)
    assert auc_difference(y[:, 0], s[:, 0], s[::-1, 0]) == auc_difference(y[:, :1], s[:, :1], s[::-1, :1])


def test_seeds_repeat_and_differ() -> None:
    y, s = sample(6)
    assert mean_auc_interval(y, s, seed=1, resamples=100) == mean_auc_interval(y, s, seed=1, resamples=100)
    assert mean_auc_interval(y, s, seed=1, resamples=100) != mean_auc_interval(y, s, seed=2, resamples=100)


def test_names_of_groups_do_not_matter() -> None:
    y, s = sample(7)
    numbers = np.arange(200) // 2
    names = np.array([f"patient{n:03d}" for n in numbers])
    assert mean_auc_interval(y, s, groups=numbers, resamples=50) == mean_auc_interval(y, s, groups=names, resamples=50)


def test_perfect_ranking_still_has_a_lower_end() -> None:
    few = auc_interval([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6])
    many = auc_interval([0] * 50 + [1] * 50, np.arange(100))
    assert few.value == few.high == many.value == many.high == 1
    assert 0.4 < few.low < 0.8 < many.low < 1
    upside_down = auc_interval([0, 0, 0, 1, 1, 1], [6, 5, 4, 3, 2, 1])
    assert upside_down == pytest.approx((0, 0, 1 - few.low))
    grouped = auc_interval([0] * 50 + [1] * 50, np.arange(100), groups=np.arange(100) // 10)
    assert grouped.low < many.low


def test_one_positive_has_a_wide_interval() -> None:
    value, low, high = auc_interval([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.25])
    assert value == pytest.approx(2 / 3)
    assert low < 0.3
    assert high > 0.9


def test_undefined_is_nan() -> None:
    assert all(math.isnan(v) for v in auc_interval([0, 0], [1, 2]))
    assert all(math.isnan(v) for v in auc_interval([0, NAN], [1, 2], method="bootstrap"))
    assert all(math.isnan(v) for v in mean_auc_interval([[0], [0]], [[1], [2]]))
    assert all(math.isnan(v) for v in auc_difference([0, 0], [1, 2], [2, 1]))


def test_an_undefined_class_does_not_move_the_mean() -> None:
    y, s = sample(8)
    y[:, 1] = 0
    rest = [0, 2, 3]
    assert mean_auc_interval(y, s, resamples=50) == mean_auc_interval(y[:, rest], s[:, rest], resamples=50)


def test_a_test_set_of_14_findings_takes_well_under_a_second() -> None:
    y, s = sample(9, n=250, k=14)
    start = time.process_time()
    mean_auc_interval(y, s, resamples=1000)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, NAN])
def test_levels_outside_zero_and_one_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match=r"level is .*, expected a number between 0 and 1"):
        auc_interval([0, 1], [0.1, 0.2], level=level)


def test_errors_name_the_argument() -> None:
    y, s = sample(10, n=20)
    with pytest.raises(ValueError, match=r"groups has shape \[3\], expected \[20\]"):
        mean_auc_interval(y, s, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="method is 'exact', expected 'delong' or 'bootstrap'"):
        auc_interval(y[:, 0], s[:, 0], method="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples is 0, expected a whole number of at least 1"):
        mean_auc_interval(y, s, resamples=0)
    with pytest.raises(ValueError, match=r"score_b has shape \[20, 3\], expected that of y_true, \[20, 4\]"):
        auc_difference(y, s, s[:, :3])


def test_the_bootstrap_of_a_single_patient_is_undefined() -> None:
    """Not an interval without width: whatever is drawn, it is the same patient."""
    y, s = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.3, 0.8])
    one = auc_interval(y, s, groups=["p"] * 5, method="bootstrap")
    assert one.value == pytest.approx(auc_interval(y, s).value)
    assert np.isnan([one.low, one.high]).all()
    several = auc_interval(y, s, groups=["p", "p", "q", "q", "q"], method="bootstrap")
    assert several.low < several.high
