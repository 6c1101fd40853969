"""Read, resize and normalise radiographs and masks."""

from __future__ import annotations

import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from axnet.data.dicom import is_dicom, read_dicom

StrPath = str | PathLike[str]
Float32Array = npt.NDArray[np.float32]

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


def resize(image: npt.NDArray[Any], size: int | tuple[int, int]) -> Float32Array:
    """Resize with antialiasing: a triangle filter whose support grows with the reduction, as PIL's BILINEAR.

    image: [..., H, W] of any real type or bool; size: side of a square, or (height, width), in pixels.
    Returns float32 [..., height, width] within the range of the input; a bool mask becomes its area coverage.
    Raises ValueError when image has less than two axes or size is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}, expected positive pixels.")
    if image.ndim < 2 or 0 in image.shape[-2:]:
        raise ValueError(f"image has shape {image.shape}, expected [..., H, W] with pixels.")
    source = np.ascontiguousarray(image, dtype=np.float32)
    if source.shape[-2:] == (height, width):
        return source
    planes = source.reshape(-1, *source.shape[-2:])
    target = np.empty((len(planes), height, width), dtype=np.float32)
    for plane, out in zip(planes, target, strict=True):
        out[...] = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
    return target.reshape(*source.shape[:-2], height, width)


def percentile_normalize(image: npt.NDArray[Any], low: float = 1, high: float = 99) -> Float32Array:
    """Stretch the grey values between two percentiles to [0,1] and clip the rest, to even out vendors and exposures.

    image: [H,W]; low, high: percentiles, 0 <= low < high <= 100. Returns float32 [H,W].
    An image with a single grey value between the percentiles has no contrast to stretch: the result is zero.
    Raises ValueError for percentiles out of order.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"low and high are {low} and {high}, expected 0 <= low < high <= 100.")
    bottom, top = np.percentile(image, (low, high))
    if top <= bottom:
        return np.zeros(image.shape, dtype=np.float32)
    return ((image.astype(np.float32) - np.float32(bottom)) / np.float32(top - bottom)).clip(0, 1)
