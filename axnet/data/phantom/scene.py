"""A radiograph in the making: what findings change, and how the parts add up."""

from __future__ import annotations

import numpy as np

from axnet.data.findings import Box
from axnet.data.phantom.anatomy import Chest
from axnet.data.phantom.canvas import Field, Mask, Strokes, smooth, value_noise
from axnet.data.phantom.study import Study

Rng = np.random.Generator

_TRIES = 24
_BOX_LEVEL = 0.35


class Scene:
    """State that findings and distractors draw on.

    opacity: fraction of the lungs' air that is replaced, [0,1]; air: extra air (1 = a lung's depth); density: extra
    attenuation anywhere; vessel_gain: strength of the vessels. All float32 [size,size].
    """

    def __init__(self, chest: Chest, study: Study) -> None:
        """Begin with a healthy chest."""
        self.chest = chest
        self.study = study
        self.size = chest.size
        shape = (chest.size, chest.size)
        self.opacity: Field = np.zeros(shape, dtype=np.float32)
        self.air: Field = np.zeros(shape, dtype=np.float32)
        self.density: Field = np.zeros(shape, dtype=np.float32)
        self.vessel_gain: Field = np.ones(shape, dtype=np.float32)
        self.boxes: list[Box] = []

    def fill(self, amount: Field) -> None:
        """Replace a fraction of the remaining air, so that overlapping opacities never exceed a full one."""
        self.opacity += amount * (1 - self.opacity)

    def strokes(self) -> Strokes:
        """An empty stroke layer in the patient frame."""
        return Strokes(self.chest.anatomy.pose, self.size)

    def mark(self, finding: str, field: Field, *, per_lung: bool = False) -> None:
        """Record the box around what was drawn, pixels above 35 % of the field's peak; per_lung: one box a lung."""
        peak = float(field.max())
        support = field > np.float32(_BOX_LEVEL * peak)
        parts = [support & self.lung_side(left) for left in (False, True)] if per_lung else [support]
        for part in parts if peak > 0 else ():
            columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
            if len(columns):
                x, y = float(columns[0]), float(rows[0])
                self.boxes.append(Box(finding, x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y))

    def point_in_lung(
        self, rng: Rng, *, margin: float, left: bool | None = None, top: float = 0.08, bottom: float = 1.0
    ) -> tuple[float, float]:
        """Random patient point at least margin from wall, heart and dome; top, bottom: fractions of lung height."""
        chest, a = self.chest, self.chest.anatomy
        lefts = rng.random(_TRIES) < 0.5 if left is None else np.full(_TRIES, left)
        levels, depths = rng.uniform(top, bottom, _TRIES), rng.uniform(0.12, 0.95, _TRIES)
        for is_left, level, depth in zip(lefts.tolist(), levels.tolist(), depths.tolist(), strict=True):
            y = a.apex + level * (chest.dome_height(is_left) - a.apex)
            x = (1.0 if is_left else -1.0) * (0.12 + depth * (a.half_width - 0.12))
            if self._inside(x, y, margin):
                return x, y
        return self.chest.hilum(bool(lefts[0]))[0] * 1.6, self.chest.hilum(bool(lefts[0]))[1]

    def _inside(self, x: float, y: float, margin: float) -> bool:
        chest = self.chest
        row, column = self._pixel(x, y)
        if not (0 <= row < self.size and 0 <= column < self.size and chest.lungs[row, column]):
            return False
        room = (chest.lateral, chest.medial, chest.above_dome)
        clear_of_heart = (chest.heart_level[row, column] - 1) * chest.anatomy.heart_extent * 0.5
        return min(*(float(field[row, column]) for field in room), float(clear_of_heart)) > margin

    def point_outside(self, rng: Rng, *, margin: float) -> tuple[float, float] | None:
        """Random patient point in the body whose disc of radius margin misses lungs and heart; None if none was met."""
        chest = self.chest
        candidates = rng.uniform((-1.0, -0.95), (1.0, 0.98), (_TRIES, 2))
        for x, y in candidates.tolist():
            row, column = self._pixel(x, y)
            if not (0 <= row < self.size and 0 <= column < self.size) or chest.body[row, column] < 0.03:
                continue
            reach = max(1, round(margin * self.size / 2 * chest.anatomy.pose.scale))
            near = chest.anatomy_mask[
                max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ]
            if not near.any():
                return x, y
        return None

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        at = self.chest.anatomy.pose.pixels(np.array([x + self.chest.anatomy.midline, y]), self.size)
        return int(np.floor(at[1])), int(np.floor(at[0]))

    def distance2(self, x: float, y: float, rx: float, ry: float | None = None, tilt: float = 0.0) -> Field:
        """Squared elliptic distance from a patient point, 1 on the ellipse of radii rx, ry."""
        dx, dy = self.chest.across - np.float32(x), self.chest.y - np.float32(y)
        if tilt:
            cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        return np.asarray((dx / np.float32(rx)) ** 2 + (dy / np.float32(ry if ry else rx)) ** 2, dtype=np.float32)

    def round_density(self, rng: Rng, x: float, y: float, radius: float, sharpness: float) -> Field:
        """A lobulated ball around a patient point, 0 to 1: nodules, masses and what imitates them."""
        lobes = np.clip(1 + np.float32(0.25) * value_noise(rng, self.size, max(4, int(0.8 / radius))), 0.6, 1.5)
        level = self.distance2(x, y, radius, radius * rng.uniform(0.8, 1.2), rng.uniform(0, np.pi)) * lobes
        core = np.sqrt(np.clip(1 - level, 0, 1))
        return np.asarray(smooth((1 - level) * np.float32(sharpness)) * 0.75 + core * 0.25, dtype=np.float32)

    def patch(self, rng: Rng, x: float, y: float, radius: float, *, ragged: float = 0.8, cells: int = 12) -> Field:
        """A ragged cloud around a patient point, 0 to 1: airspace disease and what imitates it."""
        level = self.distance2(x, y, radius, radius * rng.uniform(0.75, 1.25), rng.uniform(0, np.pi))
        texture = value_noise(rng, self.size, cells) + np.float32(0.6) * value_noise(rng, self.size, 2 * cells)
        return smooth((np.float32(1.15) - level + np.float32(0.5 * ragged) * texture) * np.float32(0.5))

    def plate(self, rng: Rng, x: float, y: float, length: float, thickness: float) -> Field:
        """A slightly bent band around a patient point, 0 to 1: plate atelectasis and what imitates it."""
        tilt = rng.normal(0, 0.25)
        dx, dy = self.chest.across - np.float32(x), self.chest.y - np.float32(y)
        along = np.float32(np.cos(tilt)) * dx + np.float32(np.sin(tilt)) * dy
        off = np.float32(np.cos(tilt)) * dy - np.float32(np.sin(tilt)) * dx + np.float32(rng.normal(0, 0.5)) * along**2
        band = np.exp(-((off / np.float32(thickness)) ** 2))
        return np.asarray(band * smooth((1 - np.abs(along) / np.float32(length)) * 3), dtype=np.float32)

    def reticle(self, rng: Rng, x: float, y: float, radius: float, *, count: int = 70, step: float = 0.045) -> Field:
        """A mesh of short lines around a patient point, 0 to 1: fibrosis and what imitates it."""
        strokes = self.strokes()
        spread = rng.normal(0, radius * 0.55, (count, 2))
        start = np.array([x + self.chest.anatomy.midline, y]) + spread
        angle = rng.uniform(0, np.pi, count)
        end = start + step * rng.uniform(0.6, 1.5, (count, 1)) * np.column_stack((np.cos(angle), np.sin(angle)))
        width = rng.uniform(0.007, 0.016, count).astype(np.float32)
        strokes.segments(start, end, width, rng.uniform(0.5, 1, count).astype(np.float32))
        return strokes.field()

    def lung_side(self, left: bool) -> Mask:
        """Mask of one lung."""
        return np.asarray(self.chest.masks[0 if left else 1])

    def attenuation(self, soft: Field, bones: Field, air: Field, vessels: Field, middle: Field) -> Field:
        """Sum of all parts along the beam."""
        chest = self.chest
        lucency = np.float32(chest.anatomy.lucency) * air * (1 - self.opacity) * (1 + self.air)
        tree = np.float32(0.14) * vessels * self.vessel_gain * chest.lungs * (1 - np.float32(0.8) * self.opacity)
        total = soft + bones + middle + tree + self.density - lucency
        return np.asarray(np.maximum(total, 0), dtype=np.float32)
