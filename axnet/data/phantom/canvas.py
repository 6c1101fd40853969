"""The drawing ground: pixel grid, pose, smooth noise, soft edges, strokes and blur, all float32 [H,W].

Patient frame: x grows to the patient's left (the image's right), y grows downwards, and the unposed image spans
[-1, 1] in both, so that one unit is half the image's side at every resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
AnyField = npt.NDArray[np.floating[Any]]

_TABLE = 512
_OVERSAMPLING = 2
_CURVE_SPAN = 1.5


@lru_cache(maxsize=8)
def _pixel_grid(size: int) -> tuple[Field, Field]:
    centres = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    return centres[None, :], centres[:, None]


@dataclass(frozen=True)
class Pose:
    """Similarity from the patient frame to the image: turn in radians, scale, shift in half sides of the image."""

    turn: float
    scale: float
    shift_x: float
    shift_y: float

    def coordinates(self, size: int) -> tuple[Field, Field]:
        """Patient coordinates x, y of every pixel centre, float32 [size,size] each."""
        u, v = _pixel_grid(size)
        cos, sin = np.cos(self.turn) / self.scale, np.sin(self.turn) / self.scale
        u, v = u - np.float32(self.shift_x), v - np.float32(self.shift_y)
        return np.float32(cos) * u + np.float32(sin) * v, np.float32(cos) * v - np.float32(sin) * u

    def pixels(self, points: npt.NDArray[np.floating], size: int) -> npt.NDArray[np.float64]:
        """Pixel positions [..., 2] of patient points [..., 2]."""
        cos, sin = np.cos(self.turn) * self.scale, np.sin(self.turn) * self.scale
        u = cos * points[..., 0] - sin * points[..., 1] + self.shift_x
        v = sin * points[..., 0] + cos * points[..., 1] + self.shift_y
        return (np.stack((u, v), axis=-1) + 1) * (size / 2)


class CurveIndex:
    """Where each pixel falls in a table over [-1.5, 1.5]: shared by all curves of the same coordinate."""

    ticks = np.linspace(-_CURVE_SPAN, _CURVE_SPAN, _TABLE + 1)

    def __init__(self, coordinate: Field) -> None:
        """Locate a coordinate, float32 of any shape, in the table."""
        position = np.clip((coordinate + _CURVE_SPAN) * (_TABLE / (2 * _CURVE_SPAN)), 0, _TABLE - 0.01)
        self.cell = position.astype(np.int32)
        self.fraction = (position - self.cell).astype(np.float32)

    def __call__(self, values: npt.NDArray[np.floating]) -> Field:
        """Curve given at CurveIndex.ticks, linearly interpolated at every pixel."""
        table = values.astype(np.float32)
        return np.asarray(table[:-1][self.cell] + self.fraction * np.diff(table)[self.cell], dtype=np.float32)


def smooth(t: AnyField) -> Field:
    """Smoothstep of t clipped to [0,1]."""
    t = np.clip(t, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def edge(distance: AnyField, width: float) -> Field:
    """Soft step: 0 below -width, 1 above +width, in patient units."""
    return smooth(distance * np.float32(0.5 / width) + np.float32(0.5))


def bell(squared: AnyField) -> Field:
    """Gaussian exp(-squared)."""
    return np.asarray(np.exp(-squared), dtype=np.float32)


def value_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Smooth noise of zero mean and about unit deviation: random values on a grid of cells, smoothly interpolated."""
    lattice = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32) * np.float32(1.4)
    cell, weight = _noise_grid(size, cells)
    rows = lattice[cell] + weight[:, None] * (lattice[cell + 1] - lattice[cell])
    return np.asarray(rows[:, cell] + weight * (rows[:, cell + 1] - rows[:, cell]), dtype=np.float32)


@lru_cache(maxsize=64)
def _noise_grid(size: int, cells: int) -> tuple[npt.NDArray[np.intp], Field]:
    position = (np.arange(size) + 0.5) * (cells / size)
    cell = np.minimum(position.astype(np.intp), cells - 1)
    return cell, smooth((position - cell).astype(np.float32))


def blur(image: Field, sigma: float) -> Field:
    """Gaussian blur with sigma in pixels, edges repeated."""
    radius = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-3)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        # Shifted sums, not a matrix product: the order of additions is fixed, so results do not depend on BLAS.
        pad = [(radius, radius), (0, 0)] if axis == 0 else [(0, 0), (radius, radius)]
        padded = np.pad(image, pad, mode="edge")
        length = image.shape[axis]
        image = np.zeros_like(image)
        for k, tap in enumerate(taps):
            image += tap * (padded[k : k + length] if axis == 0 else padded[:, k : k + length])
    return image


class Strokes:
    """Antialiased lines and dots, drawn at twice the resolution; overlapping strokes keep the later value."""

    def __init__(self, pose: Pose, size: int) -> None:
        """Begin with an empty layer of size pixels, posed as the chest is."""
        self._pose = pose
        self._size = size
        self._canvas = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._canvas)

    def _pixels(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return self._pose.pixels(points, self._size * _OVERSAMPLING)

    def line(self, points: npt.NDArray[np.floating], width: float, value: float = 1) -> None:
        """Polyline through patient points [n,2]; width in patient units, value in [0,1]."""
        scale = self._size * _OVERSAMPLING / 2 * self._pose.scale
        flat: Sequence[float] = self._pixels(points).ravel().tolist()
        # Thinner than a stroke can be drawn: fainter instead, so that fine lines fade with the resolution.
        pixels = width * scale
        self._draw.line(flat, fill=round(255 * value * min(1.0, pixels)), width=max(1, round(pixels)), joint="curve")

    def segments(
        self, start: npt.NDArray[np.floating], end: npt.NDArray[np.floating], width: Field, value: Field
    ) -> None:
        """Separate segments from start [n,2] to end [n,2] with a width and a value each, drawn in order."""
        scale = self._size * _OVERSAMPLING / 2 * self._pose.scale
        ends = np.concatenate((self._pixels(start), self._pixels(end)), axis=1).tolist()
        pixels = width * scale
        fills = np.rint(255 * value * np.minimum(1, pixels)).astype(int).tolist()
        widths = np.maximum(1, np.rint(pixels)).astype(int).tolist()
        for flat, fill, thick in zip(ends, fills, widths, strict=True):
            self._draw.line(flat, fill=fill, width=thick)

    def disc(self, x: float, y: float, radius: float, value: float = 1) -> None:
        """Filled circle around a patient point."""
        u, v = self._pixels(np.array([x, y])).tolist()
        r = radius * self._size * _OVERSAMPLING / 2 * self._pose.scale
        self._draw.ellipse((u - r, v - r, u + r, v + r), fill=round(255 * value))

    def field(self) -> Field:
        """What has been drawn, float32 [size,size] in [0,1]."""
        reduced = self._canvas.reduce(_OVERSAMPLING)
        return np.asarray(reduced).astype(np.float32) * np.float32(1 / 255)
