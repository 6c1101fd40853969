"""The lateral flag: a film without a bright band between the lungs that were drawn on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from axnet.segment.view import is_lateral, mediastinum

SIDE = 64


def drawn(between: float, lungs: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """A film of grey 0.5 with two lungs, and what lies between them, of these greys; and the masks."""
    masks = np.zeros((3, SIDE, SIDE), bool)
    masks[1, 16:48, 8:26] = True  # the patient's right lung is on the left-hand side
    masks[0, 16:48, 38:56] = True
    masks[2, 36:48, 30:48] = True
    film = np.full((SIDE, SIDE), 0.5)
    film[masks[0] | masks[1]] = lungs
    film[16:48, 26:38] = between
    film[0, 0], film[0, 1] = 0.0, 1.0
    return film, masks


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize(
    ("between", "lateral"),
    [(0.9, False), (0.5, False), (0.26, False), (0.2, True), (0.17, True), (0.05, False)],
)
def test_a_film_is_lateral_without_a_bright_band_between_the_lungs(between: float, lateral: bool, scale: float) -> None:
    film, masks = drawn(between)
    film = (film * scale).astype(np.float32)
    assert is_lateral(film, masks) == lateral
    assert is_lateral(film[:, ::-1], masks[[1, 0, 2]][:, :, ::-1]) == lateral


def test_brightness_is_a_share_of_the_films_range() -> None:
    film, masks = drawn(0.8)
    found = mediastinum(film, masks)
    assert 0.5 < found < 1  # blurred edges, and a range without the two single pixels
    assert mediastinum(7 + 3 * film, masks) == pytest.approx(found, abs=1e-5)
    assert mediastinum(-film, masks) == pytest.approx(-found, abs=1e-5)


def test_nothing_is_said_where_there_is_nothing_between_two_lungs() -> None:
    film, masks = drawn(0.2)
    for organ in (0, 1):
        gone = masks.copy()
        gone[organ] = False
        assert not is_lateral(film, gone)
    assert not is_lateral(film, np.ones_like(masks))
    assert not is_lateral(film, masks[[1, 0, 2]])  # on the wrong sides, which is a flag of its own
    assert not is_lateral(np.full((SIDE, SIDE), 0.3), masks)
    assert math.isnan(mediastinum(film, np.zeros_like(masks)))
