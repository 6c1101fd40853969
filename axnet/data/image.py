"""Read radiographs and masks from files."""

from __future__ import annotations

import struct
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from axnet.data.dicom import is_dicom, read_dicom
from axnet.imaging import Float32Array, percentile_normalize, resize

__all__ = ["StrPath", "percentile_normalize", "read_image", "read_mask", "resize"]

StrPath = str | PathLike[str]

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def _load(path: StrPath) -> Image.Image:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"image file '{file}' does not exist.")
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ValueError(f"image file '{file}' is truncated or not a PNG/JPEG image ({reason}).") from error


def read_image(path: StrPath) -> Float32Array:
    """Read a radiograph as grey values.

    path: PNG or JPEG of 8 or 16 bits; colour and alpha (a few NIH files are RGBA) are reduced to luminance. Or DICOM
    (axnet.data.dicom.read_dicom).
    Returns float32 [H,W] in [0,1]: the stored value over the largest value of its bit depth.
    Raises FileNotFoundError for a missing file, ValueError for one that cannot be decoded; both name the file.
    """
    if Path(path).is_file() and is_dicom(Path(path)):
        return read_dicom(Path(path))
    image = _load(path)
    if image.mode in _SIXTEEN_BIT:
        return (np.asarray(image).astype(np.float32) / np.float32(65535)).clip(0, 1)
    if image.mode == "F":
        raise ValueError(f"image file '{path}' holds floating-point pixels, expected 8 or 16 bit.")
    grey = image if image.mode == "L" else image.convert("L")
    return np.asarray(grey).astype(np.float32) / np.float32(255)


def read_mask(path: StrPath) -> npt.NDArray[np.bool_]:
    """Read a mask: bool [H,W], true where the stored value is not zero (1-bit, 0/1 and 0/255 files alike).

    Raises as read_image does.
    """
    image = _load(path)
    if image.mode not in ("1", "L", *_SIXTEEN_BIT):
        image = image.convert("L")
    return np.asarray(np.asarray(image) != 0, dtype=np.bool_)
