from __future__ import annotations

import math

import numpy as np
import pytest

from axnet.metrics import expert_points, rads_below_curve

Y = np.array([[0.0], [0], [0], [0], [1], [1], [1], [1]])
# ROC points (0, 0), (0, 1/2), (1/2, 1/2), (1/2, 1), (1, 1): two positives, two negatives, two positives, two negatives.
SCORE = np.array([[0.6], [0.6], [0.1], [0.1], [0.9], [0.9], [0.3], [0.3]])


def reader(false: int, true: int) -> np.ndarray:
    """Readings [1, N, 1] with so many of four negatives and four positives called."""
    readings = np.zeros((1, 8, 1))
    readings[0, :false] = 1
    readings[0, 4 : 4 + true] = 1
    return readings


@pytest.mark.parametrize(
    ("false", "true", "below"),
    [
        (1, 1, True),
        (1, 2, False),  # on the level part
        (1, 3, False),
        (2, 3, True),  # on the vertical part, under its top
        (2, 4, False),  # at its top
        (0, 0, True),
        (0, 2, False),
        (3, 3, True),
        (4, 4, False),
        (4, 3, True),
    ],
)
def test_strictly_below(false: int, true: int, below: bool) -> None:
    mean, per_task = rads_below_curve(Y, SCORE, reader(false, true))
    assert mean == per_task[0] == float(below)


def test_curves_are_linear_between_their_points_and_exact() -> None:
    # One tied score for all: the curve is the diagonal, in thirds no float compares exactly.
    y = np.repeat([[0.0], [1.0]], 9, axis=0)
    flat = np.full_like(y, 0.5)
    for called in range(10):
        on = np.zeros((1, 18, 1))
        on[0, :called] = on[0, 9 : 9 + called] = 1
        assert rads_below_curve(y, flat, on)[0] == 0


def test_readers_are_counted_and_tasks_are_averaged() -> None:
    readers = np.concatenate([reader(1, 1), reader(1, 3), reader(2, 3)])
    y, s = np.hstack([Y, Y, 0 * Y]), np.hstack([SCORE, -SCORE, SCORE])
    mean, per_task = rads_below_curve(y, s, np.tile(readers, (1, 1, 3)))
    assert per_task[0] == 2
    assert per_task[1] == 0
    assert math.isnan(per_task[2])
    assert mean == 1


def test_unknown_labels_are_left_out() -> None:
    y = np.vstack([Y, [[np.nan]]])
    s = np.vstack([SCORE, [[0.99]]])
    readings = np.concatenate([reader(1, 2), np.ones((1, 1, 1))], axis=1)
    assert rads_below_curve(y, s, readings)[0] == 0
    np.testing.assert_allclose(expert_points(y, readings), [[[0.25, 0.5]]])


def test_points_of_a_task_without_positives_have_no_sensitivity() -> None:
    points = expert_points(0 * Y, reader(1, 1))
    assert points[0, 0, 0] == 0.25
    assert math.isnan(points[0, 0, 1])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"radiologists has shape \[8, 1\], expected 3 dimensions \[R, N, K\]"):
        rads_below_curve(Y, SCORE, reader(1, 1)[0])
    with pytest.raises(ValueError, match=r"radiologists has shape \[1, 7, 1\], expected \[R, 8, 1\]"):
        rads_below_curve(Y, SCORE, reader(1, 1)[:, 1:])
    with pytest.raises(ValueError, match=r"radiologists holds the label 0\.3, expected 0 or 1"):
        rads_below_curve(Y, SCORE, reader(1, 1) * 0.3)
    with pytest.raises(ValueError, match="radiologists holds the label nan, expected 0 or 1"):
        expert_points(Y, reader(1, 1) * np.nan)
