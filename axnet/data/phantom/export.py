"""Write phantom radiographs to disk as NIH ChestX-ray14 is distributed, and as an organ-mask set."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axnet.data.findings import NIH_FINDINGS, NO_FINDING, ORGANS
from axnet.data.phantom.rendering import PhantomSample, render
from axnet.data.phantom.study import PREVALENCE
from axnet.paths import StrPath

_HEADER = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
]
_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
_BOXED = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Effusion",
    "Infiltration": "Infiltrate",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
_BOX_FRAME = 1024
_FIELD_OF_VIEW_MM = 350


def write_nih(
    root: StrPath,
    n: int,
    *,
    seed: int = 0,
    size: int = 256,
    test_fraction: float = 0.2,
    prevalence: float = PREVALENCE,
) -> Path:
    """Write n phantom radiographs in the official format, and return root.

    root: a new or empty folder. It receives Data_Entry_2017_v2020.csv, images/, train_val_list.txt and test_list.txt
    (no patient in both), BBox_List_2017.csv (test images and the eight findings that NIH boxed, in the 1024-pixel
    frame), readable by NIHChestXray; and organs/ (index.csv, images/, masks/), readable by OrganMaskSet, whose train
    and val share out the patients of train_val.
    size: side in pixels; test_fraction: share of the images whose patients go to test, at least one patient to each.
    Raises ValueError for a folder that is not empty, a fraction outside (0,1), or too few images for two patients.
    """
    folder = Path(root)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number between 0 and 1.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"root '{folder}' is not empty, expected a new folder.")
    for part in ("images", "organs/images", *(f"organs/masks/{organ}" for organ in ORGANS)):
        (folder / part).mkdir(parents=True)

    samples = []
    for index in range(n):
        sample = render(index, seed=seed, size=size, prevalence=prevalence)
        _write_images(folder, sample)
        samples.append(_without_pixels(sample))
    split_of = _split_patients([sample["patient"] for sample in samples], test_fraction, seed)

    _write_csv(folder / "Data_Entry_2017_v2020.csv", _HEADER, (_entry(sample, size) for sample in samples))
    for name, members in (("train_val", ("train", "val")), ("test", ("test",))):
        listed = [sample["name"] for sample in samples if split_of[sample["patient"]] in members]
        (folder / f"{name}_list.txt").write_text("".join(f"{image}\n" for image in listed))
    scale = _BOX_FRAME / size
    boxes = [
        (sample["name"], _BOXED[box.finding], *(value * scale for value in box[1:]))
        for sample in samples
        if split_of[sample["patient"]] == "test"
        for box in sample["boxes"]
        if box.finding in _BOXED
    ]
    rows = "".join(",".join(map(str, row)) + ",,,\n" for row in boxes)
    (folder / "BBox_List_2017.csv").write_text(f"{_BOX_HEADER}\n{rows}")
    organ_rows = ((s["name"], split_of[s["patient"]], f"{s['ctr']:.4f}") for s in samples)
    _write_csv(folder / "organs" / "index.csv", ("image", "split", "ctr"), organ_rows)
    return folder


def _write_images(folder: Path, sample: PhantomSample) -> None:
    image = Image.fromarray(sample.image)
    image.save(folder / "images" / sample.name)
    image.save(folder / "organs" / "images" / sample.name)
    for organ, mask in zip(ORGANS, sample.masks, strict=True):
        Image.fromarray(mask).save(folder / "organs" / "masks" / organ / sample.name)


def _without_pixels(sample: PhantomSample) -> dict[str, Any]:
    return {key: value for key, value in vars(sample).items() if key not in ("image", "masks")}


def _split_patients(patients: Sequence[int], test_fraction: float, seed: int) -> dict[int, str]:
    """Deal shuffled patients to test until it has its share of images, then to val a fifth of the rest."""
    numbers, counts = np.unique(patients, return_counts=True)
    if len(numbers) < 2:
        raise ValueError(f"n is {len(patients)}, expected enough images for two patients or more.")
    order = np.random.default_rng([seed, len(patients)]).permutation(len(numbers))
    before = np.concatenate(([0], np.cumsum(counts[order])[:-1])) / len(patients)
    val_end = test_fraction + 0.2 * (1 - test_fraction)
    split_of = {}
    for position, start in zip(order.tolist(), before.tolist(), strict=True):
        split_of[int(numbers[position])] = "test" if start < test_fraction else "val" if start < val_end else "train"
    if "test" in split_of.values() and set(split_of.values()) == {"test"}:
        split_of[int(numbers[order[-1]])] = "train"
    return split_of


def _entry(sample: dict[str, Any], size: int) -> tuple[Any, ...]:
    present = [finding for finding, positive in zip(NIH_FINDINGS, sample["label"], strict=True) if positive]
    spacing = round(_FIELD_OF_VIEW_MM / size, 3)
    return (
        sample["name"],
        "|".join(sorted(present)) or NO_FINDING,
        sample["follow_up"],
        sample["patient"],
        sample["age"],
        sample["sex"],
        sample["view"],
        size,
        size,
        spacing,
        spacing,
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
