"""Resize and normalise images as arrays: what models, segmenter and data sets share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Float32Array = npt.NDArray[np.float32]


def grey_values(stored: npt.NDArray[Any]) -> Float32Array:
    """Whole numbers over the largest of their type; other numbers as they are. float32, of the shape of stored."""
    grey = stored.astype(np.float32, copy=False)
    return grey / np.float32(np.iinfo(stored.dtype).max) if stored.dtype.kind in "iu" else grey


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


def fitted(shape: tuple[int, ...], side: int, *, enlarge: bool = False) -> tuple[int, int]:
    """Height and width of an image [H, W] whose longer side is to have `side` pixels; a smaller one stays as it is."""
    scale = side / max(shape) if enlarge else min(1.0, side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def percentile_normalize(image: npt.NDArray[Any], low: float = 1, high: float = 99) -> Float32Array:
    """Stretch the grey values between two percentiles to [0,1] and clip the rest, to even out vendors and exposures.

    image: [H,W]; low, high: percentiles, 0 <= low < high <= 100. Returns float32 [H,W].
    An image with a single grey value between the percentiles has no contrast to stretch: the result is zero.
    Raises ValueError for percentiles out of order.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"low and high are {low} and {high}, expected 0 <= low < high <= 100.")
    bottom, top = np.percentile(image, (low, high))
    return _stretched(image, bottom, top)


def normalize_and_resize(image: npt.NDArray[Any], size: int, percentiles: tuple[float, float] | None) -> Float32Array:
    """resize(percentile_normalize(grey, *percentiles), size) of stored values, uint8 or uint16 [H,W], but faster.

    Grey values are the stored over the largest of their type; percentiles: None for none. The result is the same.
    """
    most = np.iinfo(image.dtype).max
    levels = np.arange(most + 1, dtype=np.float32) / np.float32(most)
    eight = Image.fromarray(image) if image.dtype == np.uint8 else None
    if percentiles is not None:
        counts = np.bincount(image.ravel(), minlength=most + 1) if eight is None else np.asarray(eight.histogram())
        levels = _stretched(levels, *(percentile_of_levels(counts, levels, share) for share in percentiles))
    if eight is None:
        return resize(np.take(levels, image), size)
    grey = eight.point(levels.tolist(), "F")
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR) if grey.size != (size, size) else grey)


def _stretched(image: npt.NDArray[Any], bottom: np.float64, top: np.float64) -> Float32Array:
    if top <= bottom:
        return np.zeros(image.shape, dtype=np.float32)
    return ((image.astype(np.float32) - np.float32(bottom)) / np.float32(top - bottom)).clip(0, 1)


def percentile_of_levels(counts: npt.NDArray[np.integer[Any]], levels: Float32Array, share: float) -> np.float64:
    """The percentile that numpy.percentile finds among grey values, of which counts says how often each of levels is.

    counts: [L]; levels: rising, [L]; share: 0 to 100. Sorting a film takes longer than decoding it.
    """
    ends = np.cumsum(counts)
    place = (int(ends[-1]) - 1) * (share / 100)
    below = int(place)
    around = (below, min(below + 1, int(ends[-1]) - 1))
    low, high = (levels[np.searchsorted(ends, rank, side="right")] for rank in around)
    part = np.float64(place - below)
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def mask_values(mask: npt.NDArray[Any], name: str = "mask") -> Float32Array:
    """A mask of any number type as float32 in [0,1]: 0/1 and bool as they are, 0 to 255 over 255.

    What is meant is told from the largest value: up to 1, or from 128 to 255.
    Raises ValueError, which begins with name, for other values: labels such as 0, 1 and 2, values below 0, NaN.
    """
    values = mask.astype(np.float32)
    if mask.size == 0 or mask.dtype.kind == "b":
        return values
    low, high = float(values.min()), float(values.max())
    rounding = 1e-3
    if -rounding <= low and high <= 1 + rounding:
        return values.clip(0, 1)
    if low >= 0 and 128 <= high <= 255:
        return values / np.float32(255)
    raise ValueError(f"{name} has values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255.")
