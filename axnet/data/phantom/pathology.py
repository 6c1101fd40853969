"""The 14 findings, each drawn where it occurs. Severity varies so that some are plain and some are barely there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from axnet.data.findings import NIH_FINDINGS
from axnet.data.phantom.canvas import Field, bell, edge, smooth, value_noise
from axnet.data.phantom.scene import Rng, Scene

_PART_FINDINGS = 20


def draw_findings(scene: Scene) -> None:
    """Draw every finding of the scene's study, each from its own random stream."""
    for k, finding in enumerate(NIH_FINDINGS):
        if scene.study.label[k]:
            _DRAW[finding](scene, scene.study.study_rng(_PART_FINDINGS + k))


def _severity(rng: Rng, low: float, high: float) -> np.float32:
    return np.float32(low + (high - low) * rng.beta(1.3, 1.8))


def _atelectasis(scene: Scene, rng: Rng) -> None:
    """Plate-like bands at a base; the raised dome (volume loss) belongs to the anatomy."""
    left = bool(rng.random() < 0.5)
    drawn = np.zeros_like(scene.density)
    for _ in range(int(rng.integers(1, 4))):
        x, y = scene.point_in_lung(rng, margin=0.03, left=left, top=0.55, bottom=0.95)
        band = scene.plate(rng, x, y, rng.uniform(0.12, 0.26), rng.uniform(0.01, 0.024))
        drawn = np.maximum(drawn, band * _severity(rng, 0.35, 1.0))
    drawn = drawn * scene.chest.lungs
    scene.density += np.float32(0.2) * drawn
    scene.mark("Atelectasis", drawn)


def _cardiomegaly(scene: Scene, rng: Rng) -> None:
    """Nothing to add: the heart itself was drawn wide."""
    scene.mark("Cardiomegaly", scene.chest.heart.astype(np.float32))


def _effusion(scene: Scene, rng: Rng) -> None:
    """Fluid fills a costophrenic angle up to a meniscus that climbs along the chest wall."""
    chest = scene.chest
    sides = (True, False) if rng.random() < 0.3 else (bool(rng.random() < 0.5),)
    for left in sides:
        wall_x, angle_y = chest.costophrenic(left)
        level = angle_y - _severity(rng, 0.07, 0.42)
        s = np.clip(chest.side * np.float32(1 / abs(wall_x)), 0, 1.1)
        meniscus = level + np.float32(rng.uniform(0.1, 0.2)) * (1 - s**4)
        fluid = edge(chest.y - meniscus, rng.uniform(0.02, 0.06)) * scene.lung_side(left)
        fluid = fluid * np.float32(rng.uniform(0.4, 0.9))
        scene.fill(fluid)
        scene.mark("Effusion", fluid)


def _infiltration(scene: Scene, rng: Rng) -> None:
    """Ill-defined faint haze with streaks, often in both lungs."""
    drawn = np.zeros_like(scene.density)
    for _ in range(int(rng.integers(1, 4))):
        x, y = scene.point_in_lung(rng, margin=0.04, top=0.2)
        haze = scene.patch(rng, x, y, rng.uniform(0.14, 0.26), ragged=1.2, cells=22)
        drawn = np.maximum(drawn, haze * _severity(rng, 0.14, 0.38))
    drawn = drawn * scene.chest.lungs
    scene.fill(drawn)
    scene.vessel_gain += 2 * drawn
    scene.mark("Infiltration", drawn, per_lung=True)


def _mass(scene: Scene, rng: Rng) -> None:
    radius = rng.uniform(0.07, 0.13)
    x, y = scene.point_in_lung(rng, margin=0.6 * radius)
    drawn = scene.round_density(rng, x, y, radius, 2.5) * scene.chest.lungs * _severity(rng, 0.14, 0.36)
    scene.density += drawn
    scene.mark("Mass", drawn)


def _nodule(scene: Scene, rng: Rng) -> None:
    for _ in range(1 + int(rng.random() < 0.3) + int(rng.random() < 0.2)):
        radius = rng.uniform(0.026, 0.055)
        x, y = scene.point_in_lung(rng, margin=radius)
        drawn = scene.round_density(rng, x, y, radius, 3.0) * scene.chest.lungs * _severity(rng, 0.18, 0.42)
        scene.density += drawn
        scene.mark("Nodule", drawn)


def _pneumonia(scene: Scene, rng: Rng) -> None:
    """A patchy opacity of medium density, mostly in a lower zone, sometimes two."""
    drawn = np.zeros_like(scene.density)
    for _ in range(1 + int(rng.random() < 0.35)):
        x, y = scene.point_in_lung(rng, margin=0.05, top=0.4)
        cloud = scene.patch(rng, x, y, rng.uniform(0.12, 0.2), ragged=0.9, cells=14)
        drawn = np.maximum(drawn, cloud * _severity(rng, 0.28, 0.6))
    drawn = drawn * scene.chest.lungs
    scene.fill(drawn)
    scene.mark("Pneumonia", drawn, per_lung=True)


def _pneumothorax(scene: Scene, rng: Rng) -> None:
    """The lung shrinks towards its hilum: beyond a thin pleural line there is air without vessels."""
    chest, left = scene.chest, bool(rng.random() < 0.5)
    depth = _severity(rng, 0.05, 0.26)
    apical = smooth((np.float32(chest.anatomy.apex + rng.uniform(0.5, 1.3)) - chest.y) * np.float32(1.6))
    ceiling = np.sqrt(np.clip(chest.y - np.float32(chest.anatomy.apex), 0, None)) * np.float32(0.75)
    rim = np.minimum(chest.lateral, ceiling) - depth * apical
    lung = scene.lung_side(left)
    emptied = edge(-rim, 0.008) * lung * (apical > np.float32(0.05))
    line = bell((rim * np.float32(1 / 0.011)) ** 2) * lung * apical
    scene.vessel_gain *= 1 - emptied
    scene.opacity *= 1 - emptied
    scene.air += np.float32(rng.uniform(0.1, 0.3)) * emptied
    scene.density += np.float32(rng.uniform(0.05, 0.11)) * line
    scene.fill(np.float32(rng.uniform(0.03, 0.15)) * (1 - emptied) * lung)
    scene.mark("Pneumothorax", emptied)


def _consolidation(scene: Scene, rng: Rng) -> None:
    """A dense opacity of lobar extent, crossed by air-filled bronchi."""
    x, y = scene.point_in_lung(rng, margin=0.07, top=0.15)
    cloud = scene.patch(rng, x, y, rng.uniform(0.18, 0.28), ragged=0.5, cells=9)
    bronchi = scene.reticle(rng, x, y, 0.14, count=14, step=0.1)
    drawn = cloud * scene.chest.lungs * _severity(rng, 0.4, 0.85) * (1 - np.float32(0.35) * bronchi)
    scene.fill(drawn)
    scene.mark("Consolidation", drawn)


def _edema(scene: Scene, rng: Rng) -> None:
    """Haze around both hila that fades outwards, wide vessels, and septal lines at the bases."""
    chest, amount = scene.chest, _severity(rng, 0.1, 0.42)
    texture = 1 + np.float32(0.3) * value_noise(rng, scene.size, 26)
    drawn = np.zeros_like(scene.density)
    for left in (False, True):
        x, y = chest.hilum(left)
        drawn += bell(scene.distance2(x * 1.4, y + 0.1, rng.uniform(0.26, 0.36), 0.42))
    drawn = np.clip(drawn * texture * amount, 0, 0.9) * chest.lungs
    scene.fill(drawn)
    scene.vessel_gain += np.float32(0.6) * amount
    for left in (False, True):
        wall_x, angle_y = chest.costophrenic(left)
        septa = scene.reticle(rng, wall_x * 0.85, angle_y - 0.25, 0.12, count=16, step=0.05)
        scene.density += np.float32(0.1) * amount * septa * chest.lungs
    scene.mark("Edema", drawn, per_lung=True)


def _emphysema(scene: Scene, rng: Rng) -> None:
    """Long clear lungs with flat domes belong to the anatomy; here vessels thin out and bullae appear."""
    scene.vessel_gain *= np.float32(rng.uniform(0.45, 0.75))
    for _ in range(int(rng.integers(0, 4))):
        x, y = scene.point_in_lung(rng, margin=0.05, bottom=0.5)
        bulla = smooth((1 - scene.distance2(x, y, rng.uniform(0.07, 0.14))) * 2) * scene.chest.lungs
        scene.air += np.float32(rng.uniform(0.05, 0.2)) * bulla
        scene.vessel_gain *= 1 - np.float32(0.7) * bulla
    scene.mark("Emphysema", scene.chest.lungs.astype(np.float32), per_lung=True)


def _fibrosis(scene: Scene, rng: Rng) -> None:
    """A mesh of lines at the bases and along the wall, in one lung or both."""
    chest, drawn = scene.chest, np.zeros_like(scene.density)
    for left in (False, True) if rng.random() < 0.7 else (bool(rng.random() < 0.5),):
        wall_x, angle_y = chest.costophrenic(left)
        x, y = wall_x * rng.uniform(0.55, 0.8), angle_y - rng.uniform(0.25, 0.5)
        mesh = scene.reticle(rng, x, y, rng.uniform(0.2, 0.34), count=int(rng.integers(60, 130)))
        drawn += mesh * chest.lungs * _severity(rng, 0.4, 1.0)
    scene.density += np.float32(0.17) * drawn
    scene.fill(np.float32(0.15) * drawn)
    scene.mark("Fibrosis", drawn, per_lung=True)


def _pleural_thickening(scene: Scene, rng: Rng) -> None:
    """A band of uneven thickness along the chest wall or over the apex."""
    chest, left = scene.chest, bool(rng.random() < 0.5)
    depth = _severity(rng, 0.03, 0.09) * (1 + np.float32(0.3) * value_noise(rng, scene.size, 12))
    if rng.random() < 0.45:
        inside = np.clip(chest.y - np.float32(chest.anatomy.apex), 0, None) * np.float32(0.9)
        extent: Field = edge(np.float32(chest.anatomy.apex + 0.3) - chest.y, 0.05)
        inside = np.minimum(inside, chest.lateral)
    else:
        centre, reach = rng.uniform(-0.2, 0.4), rng.uniform(0.2, 0.4)
        inside = chest.lateral
        extent = smooth((1 - np.abs(chest.y - np.float32(centre)) * np.float32(1 / reach)) * 3)
    drawn = edge(depth - inside, 0.012) * extent * scene.lung_side(left)
    scene.fill(drawn * np.float32(rng.uniform(0.55, 0.95)))
    scene.density += np.float32(0.08) * drawn
    scene.mark("Pleural_Thickening", drawn)


def _hernia(scene: Scene, rng: Rng) -> None:
    """A round density behind the heart, above the diaphragm, with an air bubble over a fluid level."""
    a = scene.chest.anatomy
    radius = rng.uniform(0.12, 0.2)
    x, y = rng.uniform(0.0, 0.14), a.dome_left - 0.5 * radius + rng.uniform(-0.05, 0.03)
    ball = smooth((1 - scene.distance2(x, y, radius * 1.2, radius)) * 3)
    level = edge(np.float32(y + rng.uniform(-0.05, 0.03)) - scene.chest.y, 0.01)
    bubble = smooth((1 - scene.distance2(x, y, radius * 1.05, radius * 0.85)) * 3) * level
    scene.density += ball * np.float32(0.14) - bubble * _severity(rng, 0.24, 0.5)
    scene.mark("Hernia", ball)


_DRAW: dict[str, Callable[[Scene, Rng], None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
