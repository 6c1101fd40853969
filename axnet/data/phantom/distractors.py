"""What looks like a finding but is not: drawn outside lungs and heart, independent of the labels.

A classifier that does not know the anatomy meets the same round densities, wedges, bands, lines and meshes inside and
outside the lungs; only their place tells them apart.
"""

from __future__ import annotations

import numpy as np

from axnet.data.phantom.canvas import Field, blur, edge, smooth
from axnet.data.phantom.scene import Rng, Scene

_RATE = 0.3


def draw_distractors(scene: Scene, rng: Rng) -> None:
    """Draw a random set of distractors; pixels of lungs and heart stay as they were."""
    drawn = np.zeros_like(scene.density)
    for draw in (_round, _round, _round, _cloud, _cloud, _band, _mesh, _wedge, _streak, _bubble, _lead, _fold):
        if rng.random() < _RATE:
            drawn += draw(scene, rng)
    outside = ~scene.chest.anatomy_mask & (scene.chest.body > 0)
    scene.density += drawn * outside


def _round(scene: Scene, rng: Rng) -> Field:
    """Button, electrode, calcification, nipple: the look of a nodule or a mass."""
    radius = rng.uniform(0.026, 0.055) if rng.random() < 0.65 else rng.uniform(0.07, 0.13)
    at = scene.point_outside(rng, margin=radius)
    if at is None:
        return np.zeros_like(scene.density)
    return scene.round_density(rng, *at, radius, 2.8) * np.float32(rng.uniform(0.1, 0.4))


def _cloud(scene: Scene, rng: Rng) -> Field:
    """Soft-tissue fold, dressing: the look of airspace disease."""
    at = scene.point_outside(rng, margin=0.1)
    if at is None:
        return np.zeros_like(scene.density)
    cells = int(rng.integers(9, 24))
    return scene.patch(rng, *at, rng.uniform(0.12, 0.26), ragged=0.9, cells=cells) * np.float32(rng.uniform(0.08, 0.35))


def _band(scene: Scene, rng: Rng) -> Field:
    """Tape, bowel wall: the look of plate atelectasis."""
    at = scene.point_outside(rng, margin=0.04)
    if at is None:
        return np.zeros_like(scene.density)
    band = scene.plate(rng, *at, rng.uniform(0.12, 0.26), rng.uniform(0.01, 0.024))
    return band * np.float32(rng.uniform(0.06, 0.2))


def _mesh(scene: Scene, rng: Rng) -> Field:
    """Cloth, hair: the look of fibrosis."""
    at = scene.point_outside(rng, margin=0.08)
    if at is None:
        return np.zeros_like(scene.density)
    mesh = scene.reticle(rng, *at, rng.uniform(0.14, 0.28), count=int(rng.integers(40, 100)))
    return mesh * np.float32(rng.uniform(0.05, 0.14))


def _wedge(scene: Scene, rng: Rng) -> Field:
    """A bright wedge under a dome: the look of an effusion."""
    chest, left = scene.chest, bool(rng.random() < 0.5)
    wall_x, angle_y = chest.costophrenic(left)
    s = np.clip(chest.side * np.float32(1 / abs(wall_x)), 0, 1.1)
    top = np.float32(angle_y + rng.uniform(0.02, 0.12)) + np.float32(rng.uniform(0.1, 0.2)) * (1 - s**4)
    wedge = edge(chest.y - top, 0.04) * edge(np.float32(angle_y + 0.35) - chest.y, 0.1)
    wedge = wedge * edge(chest.flank - chest.side - np.float32(0.04), 0.04)
    return np.asarray(wedge * (chest.is_left == left) * np.float32(rng.uniform(0.1, 0.3)), dtype=np.float32)


def _streak(scene: Scene, rng: Rng) -> Field:
    """Dark gas along the chest wall or neck: the look of a pneumothorax."""
    chest, left = scene.chest, bool(rng.random() < 0.5)
    off = (chest.lateral + np.float32(rng.uniform(0.05, 0.09))) * np.float32(1 / rng.uniform(0.02, 0.045))
    centre, reach = rng.uniform(-0.5, 0.3), rng.uniform(0.2, 0.45)
    extent = smooth((1 - np.abs(chest.y - np.float32(centre)) * np.float32(1 / reach)) * 2)
    streak = np.exp(-(off**2)) * extent * (chest.is_left == left)
    return np.asarray(streak * np.float32(-rng.uniform(0.08, 0.25)), dtype=np.float32)


def _bubble(scene: Scene, rng: Rng) -> Field:
    """Round bowel gas under the diaphragm: the look of a hernia's bubble or of a bulla."""
    x, y = rng.uniform(-0.5, 0.5), scene.chest.anatomy.dome_right + rng.uniform(0.2, 0.45)
    radius = rng.uniform(0.06, 0.16)
    ball = smooth((1 - scene.distance2(x, y, radius * 1.15, radius)) * 1.6)
    return np.asarray(ball * np.float32(-rng.uniform(0.08, 0.25)), dtype=np.float32)


def _lead(scene: Scene, rng: Rng) -> Field:
    """A catheter or monitor lead: the look of a pleural line."""
    strokes = scene.strokes()
    side = -1.0 if rng.random() < 0.5 else 1.0
    points = np.array([[side * rng.uniform(0.1, 0.5), -1.1], [side * rng.uniform(0.5, 0.9), rng.uniform(-0.9, -0.5)]])
    bend = np.array([side * rng.uniform(0.75, 1.1), rng.uniform(-0.3, 0.2)])
    last = np.array([side * rng.uniform(0.6, 0.95), rng.uniform(0.6, 1.1)])
    t = np.linspace(0, 1, 24)[:, None]
    control = (*points, bend, last)
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    curve = np.sum([w * p for w, p in zip(weights, control, strict=True)], axis=0)
    strokes.line(curve, rng.uniform(0.01, 0.02))
    return strokes.field() * np.float32(rng.uniform(0.08, 0.3))


def _fold(scene: Scene, rng: Rng) -> Field:
    """A skin fold: a soft edge, dark on one side, beside the chest wall."""
    chest = scene.chest
    line = chest.side - np.float32(chest.anatomy.half_width + rng.uniform(0.02, 0.2)) + np.float32(0.1) * chest.y
    fold = edge(line, 0.01) * np.exp(-np.clip(line, 0, None) * np.float32(1 / 0.06))
    return blur(np.asarray(fold * np.float32(rng.uniform(-0.15, 0.15)), dtype=np.float32), 0.6)
