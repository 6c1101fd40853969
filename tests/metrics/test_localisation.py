from __future__ import annotations

import numpy as np
import pytest
import torch

from axnet.metrics import localisation
from axnet.metrics.localisation import _resized


def blob(x: int, y: int, w: int, h: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    prob = np.full(size, 0.1)
    prob[y : y + h, x : x + w] = 0.9
    prob[y + h // 2, x + w // 2] = 1.0
    return prob


def test_a_map_that_is_the_box_is_found_exactly() -> None:
    found = localisation([[4, 6, 8, 5]], blob(4, 6, 8, 5)[None])
    assert found.predicted.tolist() == [[4, 6, 8, 5]]
    assert (found.iou[0], found.iobb[0], found.pointing) == (1, 1, 1)
    assert found.accuracy() == dict.fromkeys((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 1.0)


def test_overlaps_that_can_be_counted() -> None:
    # 10 x 4 predicted at (4, 6), the reader's 5 x 4 at (9, 6): 20 pixels shared of 40
    found = localisation([[9, 6, 5, 4]], blob(4, 6, 10, 4)[None])
    assert (found.iou[0], found.iobb[0]) == pytest.approx((0.5, 0.5))
    inner = localisation([[4, 6, 10, 4]], blob(4, 6, 5, 4)[None])
    assert (inner.iou[0], inner.iobb[0]) == pytest.approx((0.5, 1.0))
    assert inner.accuracy("iobb", [0.5, 0.7]) == {0.5: 1.0, 0.7: 1.0}
    assert inner.accuracy("iou", [0.5, 0.7]) == {0.5: 1.0, 0.7: 0.0}


def test_only_the_region_of_the_peak_counts() -> None:
    prob = np.maximum(blob(2, 2, 5, 5), blob(20, 12, 5, 5) * 0.8)
    found = localisation([[2, 2, 5, 5], [20, 12, 5, 5]], np.stack([prob, prob]))
    assert found.hit.tolist() == [True, False]
    assert found.iou.tolist() == [1, 0]


def test_boxes_of_a_larger_frame() -> None:
    prob = blob(4, 6, 8, 5)
    found = localisation([[40, 60, 80, 50]], prob[None], frame=(200, 300))
    assert found.pointing == 1
    assert found.iou[0] > 0.7
    assert np.abs(found.predicted[0] - [40, 60, 80, 50]).max() <= 12  # half a map's pixel on either side


def test_resizing_is_that_of_the_network() -> None:
    prob = np.random.default_rng(0).random((7, 5))
    want = torch.nn.functional.interpolate(torch.from_numpy(prob)[None, None], size=(33, 21), mode="bilinear")[0, 0]
    np.testing.assert_allclose(_resized(prob, 33, 21), want.numpy(), atol=1e-12)


def test_a_flat_map_predicts_the_frame_and_monotone_scaling_changes_nothing() -> None:
    flat = localisation([[0, 0, 15, 20]], np.full((1, 20, 30), 0.3))
    assert flat.predicted.tolist() == [[0, 0, 30, 20]]
    assert flat.iou[0] == pytest.approx(0.5)
    prob = blob(4, 6, 8, 5)[None]
    assert (localisation([[3, 6, 8, 5]], prob * 7 + 2).iou == localisation([[3, 6, 8, 5]], prob).iou).all()


@pytest.mark.parametrize(
    ("boxes", "maps", "options", "word"),
    [
        ([[1, 1, 2, 2]], np.zeros((2, 4, 4)), {}, "one box per map"),
        ([[1, 1, 0, 2]], np.zeros((1, 4, 4)), {}, "area"),
        ([[9, 1, 2, 2]], np.zeros((1, 4, 4)), {}, "within 4 x 4"),
        ([[1, 1, 2, 2]], np.full((1, 4, 4), np.nan), {}, "prob_maps holds nan"),
        ([[1, 1, 2, 2]], np.zeros((4, 4)), {}, "dimensions"),
        ([[1, 1, 2, 2]], np.zeros((1, 4, 4)), {"level": 1.0}, "level"),
    ],
)
def test_errors_name_what_is_wrong(boxes: list, maps: np.ndarray, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        localisation(boxes, maps, **options)
