"""How often films are named lateral: frontal films (false flags), and a 3-D chest projected from front and side.

python benchmarks/lateral.py --nih NIH_FOLDER --masks MASKS.parquet   # masks: of axnet segment predict NIH/images --out
python benchmarks/lateral.py                                          # the projections only

There are no lateral films in the data that axnet is made with, so what it does on them is judged on projections of an
ellipsoid chest: trunk, lungs with their domes, heart, mediastinum, trachea, spine, ribs, sternum, vessels, of varying
size, exposure and crop. That these are like films shows in that the segmenter draws the front ones without a flag.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy import ndimage

from axnet.data import MaskTable, NIHChestXray, read_image
from axnet.imaging import percentile_normalize, resize
from axnet.predictor import load_pretrained
from axnet.segment.view import LATERAL, is_lateral

SIDE = 128
FIELD = 40.0  # cm
Film = npt.NDArray[np.float32]


def chest(rng: np.random.Generator) -> Film:
    """Attenuation [x, y, z] of one chest: x to the patient's left, y to the back, z down, in voxels of FIELD / SIDE."""
    line = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * FIELD
    x, y, z = np.meshgrid(line, line, line, indexing="ij")

    def about(value: float, spread: float = 0.12) -> float:
        return value * (1 + spread * float(rng.uniform(-1, 1)))

    def ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> npt.NDArray[np.bool_]:
        axes = zip((x, y, z), centre, radii, strict=True)
        return sum(((a - c) / r) ** 2 for a, c, r in axes) <= 1  # type: ignore[no-any-return, operator]

    def column(centre: float, radii: Sequence[float]) -> npt.NDArray[np.bool_]:
        inside: npt.NDArray[np.bool_] = (x / radii[0]) ** 2 + ((y - centre) / radii[1]) ** 2 <= 1
        return inside

    width, depth = about(17), about(11.5)
    shoulders = np.clip((z + 15) / 5, 0, 1)
    radial = np.sqrt((x / (width * (0.35 + 0.65 * shoulders))) ** 2 + (y / (depth * (0.55 + 0.45 * shoulders))) ** 2)
    body = radial <= 1
    film = np.where(body, 0.2, 0.0).astype(np.float32)
    dome, middle, height = about(8.5, 0.1), about(-1.5, 0.3), about(12.5)
    lungs = np.zeros_like(body)
    for sign in (-1, 1):
        centre, radius = sign * about(7.6, 0.05), about(5.8, 0.08)
        lung = ellipsoid((centre, -0.3, middle), (radius, about(8.2, 0.08), height))
        off = ((x - centre) / (radius * 1.15)) ** 2 + ((y + 0.5) / 9) ** 2
        lungs |= lung & (z < dome - (sign < 0) - 3.2 * np.clip(1 - off, 0, 1))
    heart = ellipsoid((about(2.2, 0.3), -about(4.0, 0.2), about(4.2, 0.15)), (about(5.6), about(4.0), about(5.2)))
    lungs &= ~heart & ~((np.abs(x) < about(2.3)) & (np.abs(y + 0.5) < 7) & (z > -14) & (z < 9))
    film[lungs], film[heart] = 0.055, 0.215
    film[(np.abs(x) < 0.8) & (np.abs(y - 1) < 0.8) & (z < -2) & (z > -18)] = 0.02
    vertebrae = np.abs(((z / 2.6) % 1) - 0.5) < 0.42
    spine = column(7.2, (1.9, 1.9))
    film[spine] = np.where(vertebrae, 0.42, 0.25)[spine]
    film[column(9.6, (0.7, 1.1)) & vertebrae] = 0.4
    film[(np.abs(x) < 1.6) & (np.abs(y + depth - 2.2) < 0.6) & (z > -11) & (z < 6)] = 0.33
    shell = np.sqrt((x / (width - 2)) ** 2 + (y / (depth - 1.8)) ** 2)
    for rib in range(10):
        along = np.abs(z - (-11 + 2.35 * rib - 0.38 * y + 0.05 * np.abs(x))) < 0.45
        film[(np.abs(shell - 0.95) < 0.045) & along & (np.abs(x) > 1.5) & body] = 0.36
    film[
        (np.abs(z + 12.0 - 0.12 * np.abs(x)) < 0.55) & (np.abs(y + 5) < 0.8) & (np.abs(x) > 1.5) & (np.abs(x) < 14)
    ] = 0.36
    for sign in (-1, 1):
        for _ in range(26):
            begin, end = np.array([sign * 2.5, 0, 0]), rng.uniform((4, -6, -10), (12, 6, 8)) * (sign, 1, 1)
            places = begin + (end - begin) * np.linspace(0, 0.64, 26)[:, None]
            for i, j, k in ((places / FIELD + 0.5) * SIDE).astype(int).clip(1, SIDE - 2):
                box = film[i - 1 : i + 1, j - 1 : j + 1, k - 1 : k + 1]
                np.maximum(box, 0.15, out=box)
    return film


def projected(volume: Film, axis: int, rng: np.random.Generator) -> Film:
    """A film [SIDE, SIDE] of a chest along an axis, 0 from the side and 1 from the front, with exposure and crop."""
    dense = ndimage.gaussian_filter(volume.sum(axis).T ** rng.uniform(0.8, 1.0), rng.uniform(0.6, 1.2))
    film = percentile_normalize(dense, 2, 99) + rng.normal(0, 0.015, dense.shape)
    if axis == 0 and rng.random() < 0.5:
        film = film[:, ::-1]
    size = int(SIDE * (rng.uniform(0.55, 0.8) if axis == 0 else rng.uniform(0.8, 1)))
    top = min(int(rng.uniform(0.02, 0.12) * SIDE), SIDE - size)
    left = int((SIDE - size) * rng.uniform(0.35, 0.65))
    cut = film[top : top + size, left : left + size].clip(0, 1).astype(np.float32)
    return resize(cut ** np.float32(rng.uniform(0.6, 1.6)), SIDE)


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chests", type=int, default=40)
    parser.add_argument("--nih", type=Path)
    parser.add_argument("--masks", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    films: dict[str, list[Film]] = {"front": [], "side": []}
    for _ in range(arguments.chests):
        volume = chest(rng)
        films["front"].append(projected(volume, 1, rng))
        films["side"].append(projected(volume, 0, rng))
    predictor = load_pretrained()
    for name, drawn in films.items():
        found = predictor.predict(drawn)
        print(
            json.dumps(
                {
                    "films": f"projected, {name}",
                    "count": len(found),
                    "no call": sum(bool(one.flags) for one in found),
                    "lateral": sum(LATERAL in one.flags for one in found),
                }
            )
        )
    if arguments.nih is None:
        return
    table = MaskTable(arguments.masks)
    flags = pq.read_table(arguments.masks, columns=["image", "flags"]).to_pydict()
    flagged = {film for film, flag in zip(flags["image"], flags["flags"], strict=True) if flag}
    for split in ("test", "train_val"):
        source = NIHChestXray(arguments.nih, split=split)
        named = {film for film in source.ids if is_lateral(read_image(source.path(film)), table(film))}
        no_call = named | (flagged & set(source.ids))
        counts = {"count": len(source), "no call": len(no_call), "lateral": len(named)}
        print(json.dumps({"films": f"frontal, {split}", **counts, "lateral alone": len(named - flagged)}))


if __name__ == "__main__":
    main()
