"""The normal chest as attenuation: soft tissue, air, bones, vessels. Amounts are in units of a chest's soft tissue."""

from __future__ import annotations

import numpy as np

from axnet.data.phantom.anatomy import Chest
from axnet.data.phantom.canvas import AnyField, Field, Strokes, bell, edge, smooth, value_noise
from axnet.data.phantom.study import Study

Rng = np.random.Generator


def soft_tissue(chest: Chest, study: Study, rng: Rng) -> Field:
    """Body without its lungs: torso, shoulders, arms, breasts, abdomen below the domes."""
    inside = np.clip(chest.body, 0, None)
    rim = np.sqrt(np.minimum(inside * np.float32(1 / 0.22), 1))
    torso = smooth((chest.flank - chest.side) * np.float32(1 / 0.55))
    height = np.clip((chest.y + 0.9) * np.float32(0.8), 0, 1)
    depth = (np.float32(0.5) + np.float32(0.5) * torso * (0.35 + 0.65 * height)) * rim
    below = np.clip(-chest.above_dome, 0, None)
    depth += np.float32(0.32) * (1 - np.exp(below * np.float32(-1 / 0.1))) * torso
    if study.sex == "F":
        size, bulk = rng.uniform(0.2, 0.36), rng.uniform(0.04, 0.22)
        low, out = rng.uniform(0.2, 0.42), rng.uniform(0.36, 0.46)
        r2 = ((chest.side - np.float32(out)) ** 2 + (chest.y - np.float32(low)) ** 2) * np.float32(1 / size**2)
        depth += np.float32(bulk) * np.sqrt(np.clip(1 - r2, 0, 1)) * (inside > 0)
    depth *= 1 + np.float32(0.03) * value_noise(rng, chest.size, 5)
    return np.asarray(depth, dtype=np.float32)


def lung_air(chest: Chest) -> Field:
    """Depth of air along the beam, 0 outside the lungs to about 1, thinning towards apex, wall and behind the heart."""
    a = chest.anatomy
    lateral = np.clip(chest.lateral * np.float32(1 / 0.3), 0, 1)
    # sqrt of a circle's sagitta: the chest wall curves away from the beam.
    depth = np.sqrt(lateral * (2 - lateral)) * (
        np.float32(0.6) + np.float32(0.4) * smooth((chest.y - np.float32(a.apex)) * 2)
    )
    depth = depth * (np.float32(0.82) + np.float32(0.18) * smooth(chest.medial * np.float32(1 / 0.16)))
    depth = depth * (np.float32(0.45) + np.float32(0.55) * np.clip(chest.above_dome * np.float32(1 / 0.16) + 0.3, 0, 1))
    return np.asarray(depth * chest.lungs, dtype=np.float32)


def mediastinum(chest: Chest, rng: Rng) -> Field:
    """Heart and great vessels over the soft tissue, and the air of trachea and main bronchi (negative)."""
    # Lung in front of and behind the heart: on many films the heart is only a little denser than the chest wall.
    bulk = np.float32(rng.uniform(-0.16, 0.12))
    depth = bulk * np.sqrt(np.clip(1 - chest.heart_level, 0, 1))
    depth += np.float32(0.1) * edge(-chest.medial - np.float32(0.01), 0.03) * edge(chest.y + np.float32(0.75), 0.15)
    carina = np.float32(chest.hilum(False)[1] - 0.12)
    below = chest.y - carina
    tube = bell((chest.side * np.float32(1 / 0.036)) ** 2) * edge(-below, 0.03)
    fork = bell(((chest.side - np.float32(0.75) * np.clip(below, 0, None)) * np.float32(1 / 0.026)) ** 2)
    fork = fork * edge(below, 0.03) * edge(np.float32(0.16) - below, 0.05)
    return np.asarray(depth - np.float32(0.3) * tube - np.float32(0.12) * fork, dtype=np.float32)


def gastric_bubble(chest: Chest, rng: Rng) -> Field:
    """Air in the stomach under the left dome (negative), and bowel gas below it."""
    x, y = rng.uniform(0.24, 0.42), chest.anatomy.dome_left + rng.uniform(0.1, 0.18)
    rx, ry, amount = rng.uniform(0.07, 0.17), rng.uniform(0.04, 0.1), rng.uniform(0, 0.28)
    level = ((chest.across - np.float32(x)) / np.float32(rx)) ** 2 + ((chest.y - np.float32(y)) / np.float32(ry)) ** 2
    air = smooth((1 - level) * np.float32(2.5)) * (chest.above_dome < np.float32(-0.02))
    gas = smooth(value_noise(rng, chest.size, 9) - np.float32(0.9)) * edge(-chest.above_dome - np.float32(0.3), 0.1)
    return np.asarray(-np.float32(amount) * air - np.float32(0.12) * gas, dtype=np.float32)


def bones(chest: Chest, rng: Rng) -> Field:
    """Spine, ribs (posterior arcs, anterior arcs), clavicles, scapulae, humeri."""
    a, y, side = chest.anatomy, chest.y, chest.side
    spine_x = chest.across - np.float32(rng.normal(0, 0.008)) - np.float32(rng.normal(0, 0.03)) * (y - 0.2) ** 2
    column = smooth((np.float32(0.085) - np.abs(spine_x)) * np.float32(1 / 0.03))
    discs = np.sin(y * np.float32(2 * np.pi / 0.125) + np.float32(rng.uniform(0, 6.28)))
    depth = np.float32(rng.uniform(0.14, 0.22)) * column * (1 + np.float32(0.16) * discs)

    s = side * (1 / np.maximum(chest.wall_at, np.float32(0.2)))
    cage = smooth((np.float32(1.03) - s) * np.float32(1 / 0.035)) * edge(y - np.float32(a.apex - 0.03), 0.04)
    spacing, phase = rng.uniform(0.118, 0.138), rng.uniform(0, 1)
    skew = np.where(chest.is_left, np.float32(rng.normal(0, 0.05)), np.float32(0))
    strength = np.float32(rng.uniform(0.05, 0.1))
    run = y * (1 / np.float32(spacing)) * (1 - np.float32(0.1) * y) + np.float32(phase) + skew
    back = np.float32(2.2) * (s - np.float32(0.3)) ** 2 + np.float32(0.2) * s
    posterior = _rib(run - back, 0.27)
    depth += strength * posterior * cage * smooth((side - np.float32(0.05)) * 12)
    front = np.float32(3.1) * (1 - s) - np.float32(1.6) * (1 - s) ** 2
    reach = smooth((s - np.float32(0.28)) * 5)
    anterior = _rib(run * np.float32(0.93) - front + np.float32(0.35), 0.33)
    depth += np.float32(0.6) * strength * anterior * cage * reach * edge(np.float32(0.3) - y, 0.25)
    rim = bell(((s - np.float32(1.0)) * np.float32(1 / 0.025)) ** 2) * edge(y - np.float32(a.apex), 0.05)
    depth += strength * rim * (np.float32(0.6) + posterior)

    base, slope = a.apex + 0.14 + 0.4 * a.shoulder + rng.normal(0, 0.03), rng.uniform(0.1, 0.3)
    lift = np.where(chest.is_left, np.float32(rng.normal(0, 0.015)), np.float32(0))
    bend = np.float32(base) - np.float32(slope) * (side - 0.1) + np.float32(0.03) * np.sin(side * 8) + lift
    off = np.abs(y - bend) * np.float32(1 / 0.034)
    shaft = _tube(off) * edge(side - np.float32(0.1), 0.02) * edge(np.float32(0.84) - side, 0.03)
    depth += np.float32(rng.uniform(0.13, 0.24)) * shaft

    hx, hy = a.half_width + rng.uniform(0.2, 0.28), -0.62 + a.shoulder
    head = ((side - np.float32(hx)) ** 2 + (y - np.float32(hy)) ** 2) * np.float32(1 / 0.13**2)
    shaft = smooth((np.float32(0.08) - np.abs(side - np.float32(hx + 0.05) - np.float32(0.06) * (y - hy))) * 40)
    depth += np.float32(rng.uniform(0.08, 0.18)) * np.maximum(
        smooth((1 - head) * 1.6), shaft * edge(y - np.float32(hy), 0.08)
    )
    border = np.float32(a.half_width - 0.08 + rng.normal(0, 0.03)) + np.float32(0.22) * (y + np.float32(0.3))
    plate = edge(side - border, 0.012) * edge(np.float32(hx - 0.05) - side, 0.05)
    plate = plate * edge(y - np.float32(hy + 0.02), 0.08) * edge(-y - 0.02 - np.float32(0.9) * (side - 0.6), 0.06)
    depth += np.float32(rng.uniform(0.04, 0.1)) * plate
    return np.asarray(depth * (chest.body > 0), dtype=np.float32)


def _rib(phase: AnyField, half: float) -> Field:
    return _tube(np.abs(phase - np.rint(phase)) * np.float32(1 / half))


def _tube(off: AnyField) -> Field:
    # A hollow bone: its cortex is densest where the beam is tangential to it.
    profile = smooth((1 - off) * np.float32(3.5)) * (np.float32(0.5) + np.float32(0.5) * off * off)
    return np.asarray(profile, dtype=np.float32)


def vessels(chest: Chest, rng: Rng) -> Field:
    """Pulmonary vessels branching from both hila, 0 to 1, and the hila themselves."""
    strokes = Strokes(chest.anatomy.pose, chest.size)
    starts, ends, widths, values = [], [], [], []
    for left in (False, True):
        hx, hy = chest.hilum(left)
        sign = 1.0 if left else -1.0
        angle = np.linspace(-1.35, 1.45, 11) + rng.normal(0, 0.12, 11)
        point = np.column_stack((np.full(11, hx + chest.anatomy.midline), np.full(11, hy)))
        point += rng.normal(0, 0.025, point.shape)
        width = rng.uniform(0.02, 0.036, 11)
        for generation in range(6):
            step = (0.085 if generation else 0.1) * rng.uniform(0.7, 1.2, len(angle))
            end = point + np.column_stack((sign * np.cos(angle) * step, np.sin(angle) * step))
            starts.append(point)
            ends.append(end)
            widths.append(width)
            values.append(np.full(len(angle), 0.85 - 0.07 * generation))
            if generation in (0, 2):
                fork = rng.uniform(0.2, 0.5, len(angle))
                angle = np.concatenate((angle + fork, angle - fork))
                end, width = np.concatenate((end, end)), np.concatenate((width, width * 0.8)) * 0.78
            angle = angle + rng.normal(0, 0.16, len(angle))
            point, width = end, width * 0.84
    order = slice(None, None, -1)  # thin branches first: a trunk lies over its own twigs
    strokes.segments(
        np.concatenate(starts[order]),
        np.concatenate(ends[order]),
        np.concatenate(widths[order]).astype(np.float32),
        np.concatenate(values[order]).astype(np.float32),
    )
    tree = strokes.field()
    for left in (False, True):
        hx, hy = chest.hilum(left)
        r2 = ((chest.across - np.float32(hx)) / np.float32(0.075)) ** 2 + (
            (chest.y - np.float32(hy)) / np.float32(0.11)
        ) ** 2
        tree = tree + np.float32(0.55) * bell(r2)
    return np.asarray(tree, dtype=np.float32)
