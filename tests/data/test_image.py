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


UPRIGHT = np.kron(np.array([[20, 60, 100], [140, 180, 220]], np.uint8), np.ones((16, 16), np.uint8))
# EXIF orientation to the pixels as the camera stored them
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_films_and_masks_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    for name, pixels in (("film", stored), ("mask", (stored > 120).astype(np.uint8) * 255)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.{suffix}", exif=exif(orientation), **options)
    image = read_image(tmp_path / f"film.{suffix}")
    assert image.shape == UPRIGHT.shape
    assert np.abs(image - UPRIGHT / 255).max() < (0.05 if suffix == "jpg" else 1e-6)
    assert np.array_equal(read_mask(tmp_path / f"mask.{suffix}"), UPRIGHT > 120)
    deep = stored.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif(orientation))
    assert np.allclose(read_image(tmp_path / "deep.png"), UPRIGHT / 255, atol=1e-6)
    one_bit = Image.fromarray(stored > 120)
    one_bit.save(tmp_path / "bit.png", exif=exif(orientation))
    assert np.array_equal(read_mask(tmp_path / "bit.png"), UPRIGHT > 120)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_orientation_that_there_is_not_counts_as_none(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif(orientation))
    assert np.array_equal(read_image(tmp_path / "a.png"), (UPRIGHT / 255).astype(np.float32))
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0no such thing")
    assert read_image(tmp_path / "a.jpg").shape == UPRIGHT.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_kind_of_image_is_read_as_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray((GREY > 100).astype(np.uint8) * 255 if mode == "1" else GREY)
    image.convert(mode).save(tmp_path / "a.tif")
    expected = {"1": GREY > 100, "I;16": GREY / 65535, "I": GREY / 65535}.get(mode, GREY / 255)
    assert np.allclose(read_image(tmp_path / "a.tif"), expected, atol=1e-6)


def test_more_than_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif' holds values up to 70000, expected 8 or 16 bit"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="holds floating-point pixels"):
        read_image(tmp_path / "f.tif")
    Image.new("LAB", (2, 2)).save(tmp_path / "l.tif")
    with pytest.raises(ValueError, match=r"l.tif' holds LAB pixels"):
        read_image(tmp_path / "l.tif")


DRAWN = GREY > 100
SHADES = [1, 255]


@pytest.mark.parametrize("shade", SHADES)
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_masks_of_every_kind(tmp_path: Path, mode: str, shade: int) -> None:
    image = Image.fromarray(DRAWN.astype(np.uint8) * shade)
    if mode == "P":  # the index counts, not its colour: the background is white
        image = Image.fromarray(DRAWN.astype(np.uint8), "P") if shade == 1 else image.convert("P")
        image.putpalette([255, 255, 255, *[0] * (3 * shade)])
    image.convert(mode).save(tmp_path / ("m.tif" if mode == "I" else "m.png"))
    assert np.array_equal(read_mask(next(tmp_path.iterdir())), DRAWN)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_mask_in_one_colour(tmp_path: Path, channel: int) -> None:
    pixels = np.zeros((*GREY.shape, 3), np.uint8)
    pixels[..., channel] = DRAWN  # too dark to leave anything of its luminance
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), DRAWN)


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_outside(tmp_path: Path, mode: str, background: int) -> None:
    """Drawn in white on a transparent sheet, or one sheet of a colour with an alpha."""
    for sheet in (np.where(DRAWN, 255, background), np.full(GREY.shape, background)):
        image = Image.fromarray(sheet.astype(np.uint8)).convert(mode)
        image.putalpha(Image.fromarray(DRAWN.astype(np.uint8) * 255))
        image.save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png"), DRAWN)
    opaque = Image.fromarray(np.zeros(GREY.shape, np.uint8)).convert(mode)
    opaque.save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").any()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_mask_in_a_jpeg_file(tmp_path: Path, mode: str) -> None:
    disc = np.hypot(*(np.indices((64, 64)) - 30)) < 20
    Image.fromarray(disc.astype(np.uint8) * 255).convert(mode).save(tmp_path / "m.jpg", quality=60)
    assert (read_mask(tmp_path / "m.jpg") != disc).mean() < 0.01
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "m.jpg")
    assert not read_mask(tmp_path / "m.jpg").any()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiff_files(tmp_path: Path, orientation: int, compression: str) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    Image.fromarray(stored).save(tmp_path / "a.tif", exif=exif(orientation), compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif"), (UPRIGHT / 255).astype(np.float32))


@pytest.mark.parametrize("deep", [False, True])
def test_tiff_files_in_which_0_is_white(tmp_path: Path, deep: bool) -> None:
    shown = UPRIGHT.astype(np.uint16) * 257 if deep else UPRIGHT
    # the writer inverts 8 bits by itself, and 16 not
    Image.fromarray(65535 - shown if deep else shown).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.allclose(read_image(tmp_path / "a.tif"), UPRIGHT / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_files_of_several_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    """The others would be left out without a word."""
    picture, other = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    picture.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[other])
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=rf"a\.{suffix}' holds 2 pictures, expected one"):
            read(tmp_path / f"a.{suffix}")
    picture.save(tmp_path / "a.mpo", save_all=True, append_images=[other])  # a camera's JPEG with a small copy in it
    assert np.abs(read_image(tmp_path / "a.mpo") - GREY / 255).max() < 0.1


def test_a_mask_with_nan_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 0.5]], np.float32)).save(tmp_path / "a.tif")
    assert read_mask(tmp_path / "a.tif").tolist() == [[False, True, True]]
    Image.fromarray(np.array([[0, np.nan, 1]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif' holds NaN"):
        read_mask(tmp_path / "a.tif")


def test_what_is_no_file_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a\.png' is no file"):
        read_image(tmp_path / "a.png")
