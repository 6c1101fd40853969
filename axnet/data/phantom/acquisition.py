"""From attenuation to grey values: scatter, blur, exposure, noise, display curve, collimation, side marker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from axnet.data.phantom.anatomy import Chest
from axnet.data.phantom.canvas import Field, Strokes, blur
from axnet.data.phantom.study import Study

Rng = np.random.Generator


def expose(attenuation: Field, chest: Chest, study: Study, rng: Rng, noise: Rng) -> npt.NDArray[np.uint8]:
    """Film of an attenuation: uint8 [H,W], dense is bright. rng draws the settings, noise the grain."""
    size, supine = chest.size, study.view == "AP"
    sigma = (rng.uniform(0.3, 0.62) + 0.15 * supine) * (size / 128)
    gain = rng.uniform(1.3, 2.2) * (0.9 if supine else 1.0)
    slope_x, slope_y = rng.normal(0, 0.05, 2)
    gamma = rng.uniform(0.85, 1.3)
    black, white = rng.uniform(-0.02, 0.08), rng.uniform(0.86, 1.0)
    grain = rng.uniform(0.008, 0.022) * (1.3 if supine else 1.0)
    invert_corner = rng.random()

    image = blur(attenuation, sigma)
    image = image * (1 + np.float32(slope_x) * chest.x + np.float32(slope_y) * chest.y)
    # Quantum noise: fewer photons reach the film behind dense tissue, so grain grows with attenuation.
    image += np.float32(grain) * (np.float32(0.6) + image) * noise.standard_normal(image.shape, dtype=np.float32)
    image = 1 - np.exp(image * np.float32(-gain))
    image = np.clip(image, 0, 1) ** np.float32(gamma)
    image = np.float32(black) + np.float32(white - black) * image
    image = np.maximum(image, _marker(chest, rng, study))
    if invert_corner < 0.18:
        image = image * _collimation(chest, rng)
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), dtype=np.uint8)


_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "L": [[(0, 0), (0, 1), (0.6, 1)]],
    "R": [[(0, 1), (0, 0), (0.55, 0.08), (0.55, 0.45), (0, 0.5), (0.6, 1)]],
}


def _marker(chest: Chest, rng: Rng, study: Study) -> Field:
    letter, height = ("L", 0.09) if rng.random() < 0.75 else ("R", 0.08)
    side = 1 if letter == "L" else -1
    corner = np.array([side * rng.uniform(0.75, 0.9), rng.uniform(-0.97, -0.82)])
    strokes = Strokes(chest.anatomy.pose, chest.size)
    for path in _LETTERS[letter]:
        strokes.line(corner + height * np.array(path), 0.018)
    if study.view == "AP" and rng.random() < 0.5:
        # Where portable films carry a word, here a row of ticks: the view is written on the film, as it is in NIH.
        for k in range(6):
            start = np.array([-0.9 + 0.04 * k, -0.9])
            strokes.line(np.array([start, start + np.array([0.0, 0.03])]), 0.014)
    return strokes.field() * np.float32(0.95)


def _collimation(chest: Chest, rng: Rng) -> Field:
    turn, x, y = rng.normal(0, 0.03), rng.uniform(0.86, 1.1), rng.uniform(0.88, 1.1)
    u = chest.x + np.float32(turn) * chest.y
    v = chest.y - np.float32(turn) * chest.x
    return np.asarray((np.abs(u) < np.float32(x)) & (np.abs(v) < np.float32(y)), dtype=np.float32)
