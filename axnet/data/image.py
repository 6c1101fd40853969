"""Read radiographs and masks from files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from axnet.data.dicom import is_dicom, read_dicom
from axnet.imaging import Float32Array, grey_values, percentile_normalize, resize
from axnet.paths import StrPath

__all__ = ["percentile_normalize", "read_image", "read_mask", "resize"]

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_PHOTOMETRIC = 262  # of TIFF
_OF_STRANGERS = ("PNG", "JPEG")  # Pillow has readers for others that start programs
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def _load(path: StrPath, content: bytes | None = None, most_pixels: int | None = None) -> Image.Image:
    """The decoded image, upright: turned or mirrored as its EXIF orientation says."""
    file = Path(path)
    if content is None and not file.is_file():
        raise FileNotFoundError(f"image file '{file}' {'is no file' if file.exists() else 'does not exist'}.")
    try:
        with Image.open(file) if content is None else Image.open(io.BytesIO(content), formats=_OF_STRANGERS) as image:
            # a JPEG file of a camera (MPO) has small copies of its picture behind it
            pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            small = most_pixels is None or image.width * image.height <= most_pixels
            if small and pictures == 1:
                image.filename = ""  # no memory map: through one, Pillow 13 exchanges the sides of a turned TIFF file
                image.load()
                if image.format != "TIFF":  # which Pillow turns while it loads; 10.0 would turn it twice here
                    ImageOps.exif_transpose(image, in_place=True)
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if content is not None and isinstance(error, UnidentifiedImageError):
            reason = "it begins as none of these, nor as DICOM"
        raise ValueError(f"image file '{file}' is truncated or not a PNG/JPEG image ({reason}).") from error
    if pictures > 1:
        raise ValueError(f"image file '{file}' holds {pictures} pictures, expected one.")
    if not small:
        size = f"{image.width} x {image.height}"
        raise ValueError(f"image file '{file}' has {size} pixels, expected at most {most_pixels}.")
    return image


def read_image(path: StrPath) -> Float32Array:
    """Read a radiograph as grey values, upright as its EXIF orientation says.

    path: PNG or JPEG of 1, 8 or 16 bits; colour and palettes are reduced to luminance, and alpha (a few NIH files are
    RGBA) is left out. Or DICOM (axnet.data.dicom.read_dicom).
    Returns float32 [H,W] in [0,1]: the stored value over the largest value of its bit depth.
    Raises FileNotFoundError for a missing file, ValueError for one that cannot be decoded or has more than 16 bits;
    both name the file.
    """
    return grey_values(read_stored(path))


def read_stored(path: StrPath) -> npt.NDArray[Any]:
    """As read_image, but the stored values: uint8 or uint16 [H,W]; of DICOM what read_image returns."""
    if Path(path).is_file() and is_dicom(Path(path)):
        return read_dicom(Path(path))
    return _stored(_load(path), path)


def decode_stored(content: bytes, name: str, most_pixels: int | None = None) -> npt.NDArray[Any]:
    """As read_stored, of a file's content that lies in memory.

    PNG, JPEG or DICOM. name: what the file is called; errors say it, and its ending tells DICOM too. most_pixels: how
    many a film may have by its header, before any is decoded. Raises ValueError as read_image does, and for more.
    """
    if is_dicom(Path(name), content):
        return read_dicom(Path(name), content, most_pixels)
    return _stored(_load(name, content, most_pixels), name)


def _stored(image: Image.Image, path: StrPath) -> npt.NDArray[Any]:
    if image.mode in _SIXTEEN_BIT:
        stored = np.asarray(image)
        if stored.min() < 0 or stored.max() > 65535:
            raise ValueError(f"image file '{path}' holds values up to {stored.max()}, expected 8 or 16 bit.")
        stored = stored.astype(np.uint16)
        return 65535 - stored if _white_is_zero(image) else stored
    if image.mode == "F":
        raise ValueError(f"image file '{path}' holds floating-point pixels, expected 8 or 16 bit.")
    return np.asarray(_converted(image, "L", path))


def read_mask(path: StrPath) -> npt.NDArray[np.bool_]:
    """Read a mask: bool [H,W], upright as its EXIF orientation says.

    True where the stored value is not zero (1-bit, 0/1 and 0/255 files alike): of a palette image the index and not
    its colour, of a colour image any channel. Transparent pixels are false; an image of one colour is its alpha. JPEG
    cannot store a mask exactly: true is what is above half of its largest value.
    Raises as read_image does.
    """
    image = _load(path)
    lossy = image.mode == "L" and _is_jpeg(Path(path))
    if image.mode in ("1", "L", "P", *_SIXTEEN_BIT, "F"):
        values = np.asarray(image)
        if image.mode == "F" and np.isnan(values).any():
            raise ValueError(f"image file '{path}' holds NaN, expected numbers.")
        return np.asarray(values > values.max() / 2 if lossy else values != 0, dtype=np.bool_)
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = _converted(image, "RGB", path)
    bands = np.asarray(image)
    if bands.shape[-1] % 2:  # no alpha
        values = bands.max(-1)
        return np.asarray(values > values.max() / 2 if _is_jpeg(Path(path)) else values != 0, dtype=np.bool_)
    colour, alpha = bands[..., :-1], bands[..., -1]
    if (colour == colour[0, 0]).all() and alpha.min() < alpha.max():
        return np.asarray(alpha != 0, dtype=np.bool_)
    return np.asarray(colour.any(-1) & (alpha != 0), dtype=np.bool_)


def _converted(image: Image.Image, mode: str, path: StrPath) -> Image.Image:
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(
            f"image file '{path}' holds {image.mode} pixels, expected grey or colour ({error})."
        ) from error


def _white_is_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF file of 16 bits; with fewer, Pillow inverts such a file itself."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _is_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\xff\xd8"
