from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from axnet.data import rle

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 11)))


def test_the_first_pixel_is_one_and_rows_follow_each_other():
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 2:] = mask[1, 0] = mask[2, 3] = True
    assert rle.encode(mask) == "3 3 12 1"
    assert rle.encode(np.zeros((2, 2), dtype=bool)) == ""


@given(MASKS)
def test_decoding_is_the_inverse(mask):
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), *mask.shape), mask)


@given(MASKS, st.integers(1, 12), st.integers(1, 12))
def test_coverage_is_the_mean_over_cells(mask, h, w):
    fine = np.kron(mask, np.ones((h, w)))  # every pixel in h x w parts, so that cells have no fractions
    height, width = mask.shape
    expected = fine.reshape(h, height, w, width).mean((1, 3))
    np.testing.assert_allclose(rle.coverage(rle.encode(mask), height, width, (h, w)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("1 2 3", "has 3 numbers, expected pairs"),
        ("1 x", "begins '1 x', expected pairs of whole numbers"),
        ("0 2", "runs outside of its 2 x 3 pixels"),
        ("5 3", "runs outside of its 2 x 3 pixels"),
    ),
)
def test_text_that_is_no_mask_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        rle.decode(text, 2, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), max_size=8), st.integers(1, 4), st.integers(1, 6))
def test_runs_in_any_order_that_overlap(pairs, h, w):
    """No pixel counts twice."""
    kept = [(start, min(length, 21 - start)) for start, length in pairs]
    text = " ".join(f"{start} {length}" for start, length in kept)
    expected = np.zeros(20, bool)
    for start, length in kept:
        expected[start - 1 : start - 1 + length] = True
    mask = rle.decode(text, 4, 5)
    np.testing.assert_array_equal(mask.ravel(), expected)
    np.testing.assert_allclose(
        rle.coverage(text, 4, 5, (h, w)), rle.coverage(rle.encode(mask), 4, 5, (h, w)), atol=1e-6
    )
