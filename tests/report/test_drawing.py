from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from axnet.metrics import Interval
from axnet.report import Example
from axnet.report.pictures import cardiothoracic_ratio, example_figures
from axnet.report.plots import AucAxis, roc_panel

IMAGE = np.full((40, 60), 0.5)


def block(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(IMAGE.shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def pictures(html: str, kind: str) -> list[Image.Image]:
    found = re.findall(rf"data:image/{kind};base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_contour_follows_the_edge_of_its_mask() -> None:
    html = example_figures(Example(IMAGE, {"heart": block(10, 30, 5, 25)}), "x")
    (path,) = re.findall(r'<path d="M([^"]+)Z"', html)
    points = np.array(path.split(), float).reshape(-1, 2)
    np.testing.assert_allclose(points.min(axis=0), [5, 10], atol=0.01)
    np.testing.assert_allclose(points.max(axis=0), [25, 30], atol=0.01)


def test_a_contour_closes_at_the_border_and_an_empty_mask_has_none() -> None:
    full = example_figures(Example(IMAGE, {"lungs": block(0, 40, 0, 60)}), "x")
    (path,) = re.findall(r'<path d="M([^"]+)Z"', full)
    points = np.array(path.split(), float).reshape(-1, 2)
    np.testing.assert_allclose([points.min(axis=0), points.max(axis=0)], [[0, 0], [60, 40]], atol=0.01)
    assert '<path d=""' in example_figures(Example(IMAGE, {"lungs": block(0, 0, 0, 0)}), "x")


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m.astype(float), lambda m: m * np.uint8(255), np.uint8])
def test_masks_of_any_kind_draw_alike(make: object) -> None:
    assert callable(make)
    mask = block(10, 30, 5, 25)
    assert example_figures(Example(IMAGE, {"heart": make(mask)}), "x") == example_figures(
        Example(IMAGE, {"heart": mask}), "x"
    )


def test_the_xray_is_stored_once_and_a_map_lies_where_its_values_are() -> None:
    values = np.zeros((4, 6))
    values[0, 5] = 0.4
    html = example_figures(Example(IMAGE, {}, {"Mass": values}, predicted={"Mass": 0.7}), "x")
    (xray,), (overlay,) = pictures(html, "jpeg"), pictures(html, "png")
    assert xray.size == (60, 40)
    assert np.asarray(xray).mean() == pytest.approx(127.5, abs=1)
    opacity = np.asarray(overlay)[..., 3]
    assert overlay.size[0] / overlay.size[1] == pytest.approx(60 / 40, rel=0.02)
    row, column = np.unravel_index(opacity.argmax(), opacity.shape)
    assert row < overlay.size[1] / 4
    assert column > overlay.size[0] * 5 / 6
    assert opacity[-1, 0] == 0
    assert "up to 0.40" in html


def test_maps_come_by_probability() -> None:
    flat = np.ones((2, 2))
    predicted = {"A": 0.1, "B": 0.9, "C": 0.5}
    html = example_figures(Example(IMAGE, {}, {"A": flat, "B": flat, "C": flat}, predicted=predicted), "x")
    assert re.findall(r"<figcaption>([ABC]) ", html) == ["B", "C", "A"]


def test_a_large_image_is_reduced() -> None:
    (xray,) = pictures(example_figures(Example(np.zeros((1024, 2048), np.uint8)), "x"), "jpeg")
    assert xray.size == (512, 256)


def test_cardiothoracic_ratio() -> None:
    heart, left, right = block(20, 30, 20, 35), block(5, 30, 32, 55), block(5, 30, 5, 25)
    assert cardiothoracic_ratio(Example(IMAGE, {"heart": heart, "lungs": left | right})) == 15 / 50
    apart = {"heart": heart, "left_lung": left, "right_lung": right}
    assert cardiothoracic_ratio(Example(IMAGE, apart)) == 15 / 50
    assert cardiothoracic_ratio(Example(IMAGE, apart, ctr=0.61)) == 0.61
    assert "CTR 0.61" in example_figures(Example(IMAGE, apart, ctr=0.61), "x")
    assert math.isnan(cardiothoracic_ratio(Example(IMAGE, {"heart": heart, "left_lung": left})))
    assert math.isnan(cardiothoracic_ratio(Example(IMAGE, {"heart": 0 * heart, "lungs": left})))


def test_intervals_stand_at_their_values() -> None:
    axis = AucAxis([Interval(0.8, 0.7, 0.9), Interval(0.6, 0.43, 0.7)])
    assert axis.low == 0.4
    strip = axis.strip([Interval(0.85, 0.7, 1.0)], ["A"])
    assert 'cx="75.00%"' in strip
    assert 'x1="50.00%" x2="100.00%"' in strip
    assert AucAxis([Interval(0.95, 0.9, 0.99)]).low == 0.5
    undefined = axis.strip([Interval(*[math.nan] * 3)], ["A"])
    assert "circle" not in undefined
    assert "nan" not in undefined


def test_a_curve_runs_from_corner_to_corner() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(20_000) < 0.1).astype(float)
    panel = roc_panel(y, [y + rng.normal(size=y.size), np.zeros(y.size)], "Mass", [0.76, 0.5])
    second, first = (np.array([p.split(",") for p in c.split()], float) for c in re.findall(r'points="([^"]+)"', panel))
    np.testing.assert_array_equal(first[[0, -1]], [[14, 136], [146, 4]])
    np.testing.assert_array_equal(second, [[14, 136], [146, 4]])
    assert (np.diff(first[:, 0]) >= 0).all()
    assert len(first) < 1100
    area = (np.diff(first[:, 0]) * (136 - (first[1:, 1] + first[:-1, 1]) / 2)).sum() / 132**2
    assert area == pytest.approx(0.76, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": np.zeros((2, 3, 4))}, r"image has shape \[2, 3, 4\], expected two dimensions"),
        ({"image": IMAGE * 255}, r"image has float64 values from 127.5 to 127.5, expected values in \[0, 1\] or uint8"),
        (
            {"masks": {"heart": np.zeros((4, 4))}},
            r"masks\['heart'\] has shape \[4, 4\], expected that of image, \[40, 60\]",
        ),
        ({"prob_maps": {"Mass": np.full((4, 4), np.nan)}}, r"prob_maps\['Mass'\] has float64 values from nan"),
        ({"prob_maps": {"Mass": np.full((4, 4), 9, np.uint8)}}, r"prob_maps\['Mass'\] has uint8 values from 9 to 9"),
        ({"predicted": {"Mass": 1.2}}, r"predicted\['Mass'\] is 1.2, expected a probability in \[0, 1\]"),
    ],
)
def test_errors_name_the_argument(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**({"image": IMAGE} | fields))  # type: ignore[arg-type]
