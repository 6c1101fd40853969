"""What DICOM files of hospitals and archives hold beside the standard's examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from radiograph import radiograph

from axnet.data import read_image
from axnet.data.folder import find_images

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def write(path, pixels=RAMP, photometric="MONOCHROME2", *, syntax=ExplicitVRLittleEndian, meta=True, bits=16, **tags):
    """One file; tags are values, or (VR, value) where the keyword alone does not say it; None for an empty element."""
    data = radiograph(pixels, photometric, BitsAllocated=16, BitsStored=bits, HighBit=bits - 1)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW"
    for name, value in tags.items():
        if isinstance(value, tuple):
            data.add_new(name, *value)
        else:
            setattr(data, name, value)
    if syntax == RLELossless:
        data.compress(RLELossless)
    if not meta:
        del data.file_meta
        data.preamble = None
    encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
    pydicom.dcmwrite(path, data, enforce_file_format=meta, **({} if syntax == RLELossless else encoding))
    return path


def close(path, expected):
    np.testing.assert_allclose(read_image(path), expected, atol=1e-6)


# ---- padding

FILM = np.array([[0, 1000, 2000], [3000, 4000, 1000]], np.uint16)


def padded(value, film=FILM):
    return np.pad(film, ((0, 0), (1, 0)), constant_values=value)


@pytest.mark.parametrize("value", [65535, 0, 500])
@pytest.mark.parametrize(("photometric", "sign"), [("MONOCHROME2", 1), ("MONOCHROME1", -1)])
def test_padding_is_background_and_leaves_the_film_its_contrast(tmp_path, value, photometric, sign):
    film = FILM + 100  # so that no pixel of the film has the padding's value
    scaled = FILM / 4000 if sign > 0 else 1 - FILM / 4000
    path = write(tmp_path / "x.dcm", padded(value, film), photometric, PixelPaddingValue=("US", value))
    close(path, padded(0, scaled))


@pytest.mark.parametrize(("value", "limit"), [(60000, 65535), (65535, 60000)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_may_be_a_range(tmp_path, value, limit, photometric):
    pixels = np.pad(padded(60000), ((0, 1), (0, 0)), constant_values=63000)
    pixels[2, 1] = 65535
    tags = {"PixelPaddingValue": ("US", value), "PixelPaddingRangeLimit": ("US", limit)}
    scaled = FILM / 4000 if photometric == "MONOCHROME2" else 1 - FILM / 4000
    close(write(tmp_path / "x.dcm", pixels, photometric, **tags), np.pad(scaled, ((0, 1), (1, 0))))


@pytest.mark.parametrize("kind", [("SS", -2000), ("US", 63536)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_padding_of_signed_pixels_whatever_its_type(tmp_path, kind, syntax):
    film = FILM.astype(np.int16) - 1000
    close(write(tmp_path / "x.dcm", padded(-2000, film), syntax=syntax, PixelPaddingValue=kind), padded(0, FILM / 4000))


def test_padding_beyond_the_stored_bits(tmp_path):
    film = (FILM // 2).astype(np.uint16)
    path = write(tmp_path / "x.dcm", padded(65535, film), bits=12, PixelPaddingValue=("US", 65535))
    close(path, padded(0, FILM / 4000))


def test_padding_comes_before_rescale_and_window(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -500, "WindowCenter": 3500.5, "WindowWidth": 8001}
    path = write(tmp_path / "x.dcm", padded(65535), PixelPaddingValue=("US", 65535), **tags)
    close(path, padded(0, FILM / 4000))


def test_nothing_but_padding_is_black(tmp_path):
    close(write(tmp_path / "x.dcm", RAMP * 0 + 7, "MONOCHROME1", PixelPaddingValue=("US", 7)), RAMP * 0)


# ---- elements that are there but empty, or of no use


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    "name",
    [
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "VOILUTSequence",
        "ModalityLUTSequence",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PlanarConfiguration",
        "HighBit",
        "PresentationLUTShape",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
    ],
)
def test_an_empty_element_is_none(tmp_path, syntax, name):
    value = [] if name.endswith("Sequence") else ("US", None) if "Padding" in name or "ImagePixel" in name else None
    close(write(tmp_path / "x.dcm", syntax=syntax, **{name: value}), RAMP / 3300)


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"])
def test_an_empty_element_without_which_pixels_mean_nothing_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"x.dcm' cannot be read as DICOM \(it has no {name}\)"):
        read_image(write(tmp_path / "x.dcm", **{name: None}))
    with pytest.raises(ValueError, match=r"in no photometric"):
        read_image(write(tmp_path / "x.dcm", photometric=None))
    with pytest.raises(ValueError, match="it has no pixels"):
        read_image(write(tmp_path / "x.dcm", PixelData=("OW", b"")))


def test_one_half_of_rescale_is_enough(tmp_path):
    tags = {"WindowCenter": 3000.5, "WindowWidth": 2001}
    close(write(tmp_path / "x.dcm", RescaleSlope=2, **tags), ((RAMP * 2.0 - 2000) / 2000).clip(0, 1))
    close(write(tmp_path / "x.dcm", RescaleIntercept=1000, **tags), ((RAMP - 1000.0) / 2000).clip(0, 1) / 1)
    close(write(tmp_path / "x.dcm", RescaleSlope=0, RescaleIntercept=5), RAMP / 3300)


USABLE = ((RAMP - 1000.0) / 2000).clip(0, 1)  # of the window with centre 2000.5 and width 2001


@pytest.mark.parametrize(
    ("centre", "width", "expected"),
    [
        ([0], [0], RAMP / 3300),
        ([1000], [-5], RAMP / 3300),
        ([1000], None, RAMP / 3300),
        (None, [1000], RAMP / 3300),
        ([50000], [100], RAMP / 3300),  # shows nothing of this film
        ([2000.5, 0], [2001, 1], USABLE),
        ([0, 2000.5], [0, 2001], USABLE),
        ([0, 2000.5, 7], [0, 2001], USABLE),
        ([2000.5], [2001, 1], USABLE),
    ],
)
def test_windows_that_are_of_no_use_count_as_absent(tmp_path, centre, width, expected):
    close(write(tmp_path / "x.dcm", WindowCenter=centre, WindowWidth=width), expected)


@pytest.mark.parametrize("text", [b"NaN   ", b"n/a   ", b"abcdef", b"1e999 ", b"      ", b"-.-.-."])
@pytest.mark.parametrize("tag", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"])
def test_text_where_a_number_belongs_counts_as_absent(tmp_path, text, tag):
    tags = {"RescaleSlope": "1.0000", "RescaleIntercept": "0.0000", "WindowCenter": "2000.5", "WindowWidth": "2001.0"}
    tags[tag] = "7.7777"
    path = write(tmp_path / "x.dcm", **tags)
    content = path.read_bytes()
    assert content.count(b"7.7777") == 1
    path.write_bytes(content.replace(b"7.7777", text))
    close(path, RAMP / 3300 if tag.startswith("Window") else USABLE)


@pytest.mark.parametrize("function", ["LINEAR", "", None, "UNHEARD OF"])
def test_window_functions(tmp_path, function):
    tags = {"WindowCenter": 2000.5, "WindowWidth": 2001}
    close(write(tmp_path / "x.dcm", VOILUTFunction=function, **tags), USABLE)
    tags = {"WindowCenter": 2000, "WindowWidth": 2000}
    close(write(tmp_path / "x.dcm", VOILUTFunction="LINEAR_EXACT", **tags), USABLE)
    curve = 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 2000))
    curve = (curve - curve.min()) / (curve.max() - curve.min())
    close(write(tmp_path / "x.dcm", VOILUTFunction="SIGMOID", **tags), curve)


def lut(entries, first=0, bits=16, count=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) if count is None else count, first, bits])
    item.add_new("LUTData", "US", entries)
    return item


SMALL = np.arange(12, dtype=np.uint16).reshape(3, 4)


def test_tables(tmp_path):
    squares = [k * k for k in range(12)]
    close(write(tmp_path / "x.dcm", SMALL, VOILUTSequence=[lut(squares)]), SMALL**2 / 121)
    close(write(tmp_path / "x.dcm", SMALL, ModalityLUTSequence=[lut(squares)]), SMALL**2 / 121)
    close(write(tmp_path / "x.dcm", SMALL + 5, VOILUTSequence=[lut(squares, first=5)]), SMALL**2 / 121)
    close(write(tmp_path / "x.dcm", SMALL + 90, VOILUTSequence=[lut([3, 1], first=95)]), SMALL < 6)
    raw = lut(squares)
    raw.LUTData = np.array(squares, dtype="<u2").tobytes()
    raw["LUTData"].VR = "OW"
    close(write(tmp_path / "x.dcm", SMALL, VOILUTSequence=[raw]), SMALL**2 / 121)


def test_a_voi_table_goes_before_a_window_and_an_unusable_one_does_not(tmp_path):
    squares = [k * k for k in range(12)]
    window = {"WindowCenter": 2.0, "WindowWidth": 1}
    close(write(tmp_path / "x.dcm", SMALL, VOILUTSequence=[lut(squares)], **window), SMALL**2 / 121)
    for broken in (Dataset(), lut(squares, count=4000), lut(squares, bits=3)):
        close(write(tmp_path / "x.dcm", SMALL, VOILUTSequence=[broken], **window), SMALL > 1)
        close(write(tmp_path / "x.dcm", SMALL, VOILUTSequence=[broken, lut(squares)], **window), SMALL**2 / 121)
        close(write(tmp_path / "x.dcm", SMALL, ModalityLUTSequence=[broken]), SMALL / 11)


# ---- encodings


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_transfer_syntaxes(tmp_path, syntax, kind):
    pixels = RAMP.astype(kind) - (1500 if kind is np.int16 else 0)
    close(write(tmp_path / "x.dcm", pixels.astype(kind), syntax=syntax), RAMP / 3300)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_files_without_meta_information(tmp_path, syntax, photometric):
    path = write(tmp_path / "x.dcm", photometric=photometric, syntax=syntax, meta=False)
    close(path, RAMP / 3300 if photometric == "MONOCHROME2" else 1 - RAMP / 3300)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_meta_information_and_without_a_suffix(tmp_path, syntax):
    uid = DigitalXRayImageStorageForPresentation
    for tags in ({"SOPClassUID": uid}, {"SpecificCharacterSet": "ISO_IR 100"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}):
        path = write(tmp_path / "IM0001", syntax=syntax, meta=False, **tags)
        close(path, RAMP / 3300)
        assert [file.id for file in find_images(tmp_path)] == ["IM0001"]
    path.write_bytes(b"\x08\x00 no such thing" * 20)
    assert not find_images(tmp_path)


def test_meta_information_without_the_transfer_syntax(tmp_path):
    data = pydicom.dcmread(write(tmp_path / "x.dcm"))
    del data.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(tmp_path / "y.dcm", data, implicit_vr=False, little_endian=True, enforce_file_format=False)
    close(tmp_path / "y.dcm", RAMP / 3300)


def test_fewer_bits_than_the_container(tmp_path):
    close(write(tmp_path / "x.dcm", RAMP, bits=12), RAMP / 3300)
    close(write(tmp_path / "x.dcm", RAMP | 0xF000, bits=12), RAMP / 3300)  # something else lies in the bits above
    signed = RAMP.astype(np.int16) // 2 - 800
    close(write(tmp_path / "x.dcm", signed.astype(np.int16), bits=12), RAMP / 3300)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_values_that_stand_in_the_highest_bits_of_their_cells(tmp_path, syntax):
    """HighBit counts, as before 2013; where the values show that it is wrong, it does not."""
    tags = {"bits": 12, "HighBit": 15, "syntax": syntax}
    window = {"WindowCenter": 1650, "WindowWidth": 1000}
    film = RAMP + 7  # odd values, which need every bit
    close(write(tmp_path / "x.dcm", film << 4, **tags), RAMP / 3300)
    close(write(tmp_path / "x.dcm", (film << 4) | 5, **tags), RAMP / 3300)  # an overlay lies in the bits below
    write(tmp_path / "w.dcm", film, bits=12, syntax=syntax, **window)
    close(write(tmp_path / "x.dcm", film << 4, **tags, **window), read_image(tmp_path / "w.dcm"))
    close(write(tmp_path / "x.dcm", film, **tags), RAMP / 3300)


def test_photometric_interpretation_in_other_letters(tmp_path):
    close(write(tmp_path / "x.dcm", photometric="monochrome1 "), 1 - RAMP / 3300)


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"])
def test_compressed_files_are_what_they_were(name):
    plain, packed = EXAMPLES / "MR_small.dcm", EXAMPLES / f"{name}.dcm"
    np.testing.assert_array_equal(read_image(packed), read_image(plain))


@pytest.mark.parametrize(
    "name", ["JPEG2000", "JPGExtended", "JPEGLSNearLossless_16", "MR_small_bigendian", "image_dfl"]
)
def test_examples_of_the_standards_encodings_are_read(name):
    image = read_image(EXAMPLES / f"{name}.dcm")
    assert image.ndim == 2
    assert (image.min(), image.max()) == (0, 1)


def test_a_missing_decoder_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    with pytest.raises(
        ModuleNotFoundError,
        match=r"lossless.dcm' is compressed as JPEG-LS Lossless .* needs a decoder: pip install 'axnet\[dicom\]'",
    ):
        read_image(EXAMPLES / "MR_small_jpeg_ls_lossless.dcm")


def test_what_is_no_single_grey_image_is_named(tmp_path):
    frames = np.stack([RAMP, RAMP])
    with pytest.raises(ValueError, match=r"holds pixels of shape \[2, 3, 4\] in MONOCHROME2"):
        read_image(write(tmp_path / "x.dcm", frames))
    close(write(tmp_path / "x.dcm", frames[:1]), RAMP / 3300)
    for name, kind in (
        ("examples_palette", "PALETTE COLOR"),
        ("SC_rgb_jpeg", "RGB"),
        ("SC_rgb_rle_2frame", "RGB"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.dcm' holds pixels of shape .* in {kind} photometric"):
            read_image(EXAMPLES / f"{name}.dcm")
    for name in ("rtplan", "reportsi", "waveform_ecg"):
        with pytest.raises(ValueError, match=r"cannot be read as DICOM \(it has no pixels\)"):
            read_image(EXAMPLES / f"{name}.dcm")
