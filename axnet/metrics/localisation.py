"""How well a probability map finds a lesion: boxes drawn by readers against boxes read off the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from axnet.metrics import checks
from axnet.metrics.checks import Floats

THRESHOLDS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""The overlaps of Wang et al., CVPR 2017."""

PRIORNET: dict[float, float] = {0.1: 0.80, 0.2: 0.63, 0.3: 0.49, 0.4: 0.33, 0.5: 0.28, 0.6: 0.21, 0.7: 0.04}
"""IoU accuracy on NIH's boxes as the authors of ThoraX-PriorNet report it (Hossain et al., IEEE Access 2024)."""


@dataclass(frozen=True)
class Localisation:
    """Localisation of B boxes, each with the map of its finding.

    iou, iobb: overlap of each box with the predicted box [B]; hit: whether the map's peak lies in the box [B];
    predicted: the predicted boxes x, y, w, h [B, 4], in the frame of the boxes given.
    """

    iou: Floats
    iobb: Floats
    hit: NDArray[np.bool_]
    predicted: Floats

    @property
    def pointing(self) -> float:
        """Share of the boxes that hold the peak of their map (the pointing game of Zhang et al., ECCV 2016)."""
        return float(self.hit.mean())

    def accuracy(self, overlap: str = "iou", thresholds: Sequence[float] = THRESHOLDS) -> dict[float, float]:
        """Share of the boxes whose overlap, "iou" or "iobb", is at least each threshold."""
        if overlap not in ("iou", "iobb"):
            raise ValueError(f"overlap is {overlap!r}, expected 'iou' or 'iobb'.")
        values = self.iou if overlap == "iou" else self.iobb
        return {t: float((values >= t).mean()) for t in thresholds}


def localisation(
    boxes: ArrayLike, prob_maps: ArrayLike, frame: tuple[int, int] | None = None, level: float = 0.5
) -> Localisation:
    """Compare boxes with the boxes that probability maps give.

    boxes [B, 4]: left, top, width, height of each box, in pixels of the frame. prob_maps [B, h, w]: for each box the
    map of its finding on its film, finite, any resolution. frame: height and width of the image the boxes count in;
    None for that of the maps. level: in (0, 1).
    Rule for the predicted box: the map is resized to the frame (bilinear, pixel centres), scaled to [0, 1] by its own
    minimum and maximum; the pixels of at least `level` form regions (8-neighbours), and the box around the region of
    the peak is the prediction. A map of one value predicts the whole frame. IoU is intersection over union, IoBB
    intersection over the area of the predicted box (Wang et al., CVPR 2017).
    Raises ValueError on another shape, numbers that are not finite, nothing at all, a box without area or outside the
    frame, or a level outside (0, 1).
    """
    maps = checks.array("prob_maps", prob_maps, 3)
    b = checks.array("boxes", boxes, 2)
    if b.shape != (maps.shape[0], 4):
        raise ValueError(f"boxes has shape {list(b.shape)}, expected [{maps.shape[0]}, 4], one box per map.")
    for name, values in (("boxes", b), ("prob_maps", maps)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds {values[~np.isfinite(values)][0]}, expected finite numbers.")
    height, width = maps.shape[1:] if frame is None else frame
    level = checks.fraction("level", level)
    corner = b[:, :2] + b[:, 2:]
    bad = (b[:, 2:] <= 0).any(1) | (corner <= 0).any(1) | (b[:, 0] >= width) | (b[:, 1] >= height)
    if bad.any():
        raise ValueError(
            f"boxes holds {b[bad][0].tolist()} (x, y, w, h), expected an area within {height} x {width} pixels."
        )
    predicted, peaks = np.empty_like(b), np.empty((len(b), 2))
    for i, prob in enumerate(maps):
        predicted[i], peaks[i] = _read_off(_resized(prob, height, width), level)
    left, right = np.maximum(b[:, :2], predicted[:, :2]), np.minimum(corner, predicted[:, :2] + predicted[:, 2:])
    shared = (right - left).clip(0).prod(1)
    area, found = b[:, 2:].prod(1), predicted[:, 2:].prod(1)
    inside = np.all((peaks >= b[:, :2]) & (peaks < corner), axis=1)
    return Localisation(shared / (area + found - shared), shared / found, inside, predicted)


def _resized(prob: Floats, height: int, width: int) -> Floats:
    if prob.shape == (height, width):
        return prob
    # pixel centres on pixel centres, edges repeated: torch's bilinear with align_corners=False
    rows = (np.arange(height) + 0.5) * prob.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * prob.shape[1] / width - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    resized: Floats = ndimage.map_coordinates(prob, grid, order=1, mode="nearest")
    return resized


def _read_off(prob: Floats, level: float) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The predicted box (x, y, w, h), and the centre of the pixel of the peak (x, y)."""
    height, width = prob.shape
    row, column = np.unravel_index(int(np.argmax(prob)), prob.shape)
    peak = (column + 0.5, row + 0.5)
    low, high = prob.min(), prob.max()
    if low == high:
        return (0.0, 0.0, float(width), float(height)), (width / 2, height / 2)
    regions, _ = ndimage.label((prob - low) / (high - low) >= level, structure=np.ones((3, 3)))
    rows, columns = ndimage.find_objects(regions)[regions[row, column] - 1]
    box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    return tuple(float(value) for value in box), peak
