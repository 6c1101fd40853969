from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axnet.data import percentile_normalize, read_image, read_mask, resize

GREY = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)


def test_read_8_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.float32
    assert image.shape == (6, 8)
    assert np.array_equal(image, GREY.astype(np.float32) / 255)


def test_read_16_bit(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 257) + 3
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.allclose(read_image(tmp_path / "a.png"), deep / 65535, atol=1e-7)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colour_becomes_grey(tmp_path: Path, mode: str) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    assert np.allclose(read_image(tmp_path / "a.png"), GREY / 255, atol=1 / 255)


def test_read_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16), 120, dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=95)
    assert np.allclose(read_image(tmp_path / "a.jpg"), 120 / 255, atol=2 / 255)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere\.png' does not exist"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_mask(tmp_path / "nowhere.png")


@pytest.mark.parametrize("keep", [0, 20, 60, 0.5, 0.9])
def test_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / "cut.png"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"'.*cut\.png' is truncated or not a PNG/JPEG"):
        read_image(path)


def test_corrupt_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match=r"page\.png"):
        read_image(tmp_path / "page.png")


@pytest.mark.parametrize("stored", [GREY > 100, (GREY > 100).astype(np.uint8), (GREY > 100).astype(np.uint8) * 255])
def test_read_mask(tmp_path: Path, stored: np.ndarray) -> None:
    Image.fromarray(stored).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, GREY > 100)


def test_resize_averages_area() -> None:
    checker = np.indices((64, 64)).sum(0) % 2
    small = resize(checker.astype(np.float32), 8)
    assert small.shape == (8, 8)
    assert small.dtype == np.float32
    assert np.abs(small - 0.5).max() < 0.02, "a filter without antialiasing returns 0 or 1 here"


def test_resize_shapes_and_range() -> None:
    stack = np.random.default_rng(0).random((3, 20, 30)) < 0.5
    out = resize(stack, (10, 12))
    assert out.shape == (3, 10, 12)
    assert 0 <= out.min() < out.max() <= 1
    same = resize(GREY, (6, 8))
    assert np.array_equal(same, GREY)
    with pytest.raises(ValueError, match="size is 0"):
        resize(GREY, 0)
    with pytest.raises(ValueError, match="image has shape"):
        resize(np.zeros(5), 4)


def test_percentile_normalize() -> None:
    image = np.linspace(100, 300, 1001).reshape(7, 143)
    out = percentile_normalize(image, 10, 90)
    assert out.dtype == np.float32
    assert out.min() == 0
    assert out.max() == 1
    assert out[3, 71] == pytest.approx(0.5, abs=1e-3)
    assert (out == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (out == 1).mean() == pytest.approx(0.1, abs=0.01)
    assert not percentile_normalize(np.full((4, 4), 7.0)).any()
    with pytest.raises(ValueError, match="low and high are 99 and 1"):
        percentile_normalize(image, 99, 1)
