"""The phantom as a torch data set, with the items of NIHChestXray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from axnet.data.cardiothoracic import cardiothoracic_ratio
from axnet.data.files import replacing
from axnet.data.findings import NIH_FINDINGS, Box, organs_to_anatomies
from axnet.data.phantom.rendering import PhantomSample, render
from axnet.data.phantom.study import PREVALENCE, Study, study
from axnet.paths import StrPath

SPLITS = ("train", "val", "test")

Item = dict[str, Any]


class PhantomXray(Dataset[Item]):
    """Phantom radiographs, rendered when asked for.

    length: number of images; start: index of the first (a multiple of 6 begins with a new patient).
    seed, split: "train", "val" and "test" draw from unrelated seeds and share no patient.
    size: side in pixels. findings: labels to return and their order. prevalence: see study.
    with_masks: whether items carry masks. transform: called with the item, returns the item to use.

    Items: image float32 [1,H,W] in [0,1], label float32 [K], id, patient, view ("PA" or "AP"), ctr (cardiothoracic
    ratio), and with masks also mask float32 [2,H,W] in the order of ANATOMIES and organ_mask float32 [3,H,W] in the
    order of ORGANS. Attributes: findings, labels float32 [N,K], ids, patients (one per image), split_hash, as
    NIHChestXray has them; they are drawn on first use, without rendering.
    Raises ValueError for an unknown split or finding, or a number out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        size: int = 128,
        split: str = "train",
        findings: Sequence[str] = NIH_FINDINGS,
        with_masks: bool = True,
        start: int = 0,
        prevalence: float = PREVALENCE,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Check the arguments, which the class describes; nothing is drawn yet."""
        if length < 0 or start < 0:
            raise ValueError(f"length and start are {length} and {start}, expected numbers that are not negative.")
        unknown = [finding for finding in findings if finding not in NIH_FINDINGS]
        if unknown:
            raise ValueError(f"findings has {unknown[0]!r}, expected labels out of {NIH_FINDINGS}.")
        self.length = length
        self.seed = seed
        self.size = size
        self.split = split
        self.findings: tuple[str, ...] = tuple(findings)
        self.with_masks = with_masks
        self.start = start
        self.prevalence = prevalence
        self.transform = transform
        self.images: torch.Tensor | None = None
        self.organ_masks: torch.Tensor | None = None
        self._split_seed = split_seed(seed, split)
        self._columns = [NIH_FINDINGS.index(finding) for finding in findings]

    def __len__(self) -> int:
        """Number of images."""
        return self.length

    def __getitem__(self, index: int) -> Item:
        """One image with its labels and masks, drawn now or taken from memory."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index is {index}, expected one of {self.length} images.")
        index %= self.length
        if self.images is None or self.organ_masks is None:
            sample = self.sample(index)
            image, masks = torch.from_numpy(sample.image)[None], torch.from_numpy(sample.masks)
        else:
            image, masks = self.images[index], self.organ_masks[index]
        shot = self.study(index)
        item: Item = {
            "image": image.float() / 255,
            "label": torch.from_numpy(shot.label[self._columns].astype(np.float32)),
            "id": self._id(shot),
            "patient": self._patient(shot),
            "view": shot.view,
            "ctr": cardiothoracic_ratio(masks.numpy()),
        }
        if self.with_masks:
            item["mask"] = organs_to_anatomies(masks).float()
            item["organ_mask"] = masks.float()
        return item if self.transform is None else self.transform(item)

    def sample(self, index: int) -> PhantomSample:
        """Render the image of a position with all that is known of it."""
        return render(self.start + index, seed=self._split_seed, size=self.size, prevalence=self.prevalence)

    def boxes(self, image_id: str) -> list[Box]:
        """Boxes of the findings of an image, in its pixels; raises ValueError for an unknown id."""
        if image_id not in self._positions:
            raise ValueError(f"image_id is '{image_id}', expected an id of this data set.")
        return [box for box in self.sample(self._positions[image_id]).boxes if box.finding in self.findings]

    def materialize(self, cache: StrPath | None = None) -> PhantomXray:
        """Render all images into memory once and return this data set, which then serves from there.

        Fills images uint8 [N,1,H,W] and organ_masks bool [N,3,H,W]: 64 KiB per image of 128 pixels.
        cache: a folder in which the result is kept; its file is found again only by the same arguments and the same
        version of the drawing code.
        """
        file = None if cache is None else Path(cache) / f"phantom-{self._fingerprint()}.npz"
        if file is not None and file.is_file():
            with np.load(file) as stored:
                images = stored["images"]
                masks = np.unpackbits(stored["masks"], axis=-1, count=self.size).astype(bool)
        else:
            images = np.empty((self.length, 1, self.size, self.size), dtype=np.uint8)
            masks = np.empty((self.length, 3, self.size, self.size), dtype=bool)
            for index in range(self.length):
                sample = self.sample(index)
                images[index, 0], masks[index] = sample.image, sample.masks
            if file is not None:
                _save(file, images=images, masks=np.packbits(masks, axis=-1))
        self.images, self.organ_masks = torch.from_numpy(images), torch.from_numpy(masks)
        return self

    @cached_property
    def labels(self) -> npt.NDArray[np.float32]:
        """float32 [N,K] in the order of findings."""
        rows = [self.study(index).label[self._columns] for index in range(self.length)]
        return np.array(rows, dtype=np.float32).reshape(self.length, len(self.findings))

    @cached_property
    def ids(self) -> list[str]:
        """One unique name per image."""
        return [self._id(self.study(index)) for index in range(self.length)]

    @cached_property
    def patients(self) -> list[str]:
        """The patient of each image."""
        return [self._patient(self.study(index)) for index in range(self.length)]

    @property
    def split_name(self) -> str:
        """Name of the split in reports."""
        return f"phantom-{self.split}-seed-{self.seed}"

    @cached_property
    def split_hash(self) -> str:
        """SHA-256 (hexadecimal) of the sorted ids, one per line, as NIHChestXray's."""
        return hashlib.sha256("".join(f"{name}\n" for name in sorted(self.ids)).encode()).hexdigest()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids)}

    def study(self, index: int) -> Study:
        """What the image of a position shows, before it is drawn."""
        return study(self.start + index, seed=self._split_seed, prevalence=self.prevalence)

    def _id(self, shot: Study) -> str:
        return f"phantom-{self.seed}-{self.split}-{shot.name}"

    def _patient(self, shot: Study) -> str:
        return f"phantom-{self.seed}-{self.split}-{shot.patient:08d}"

    def fingerprint(self) -> str | None:
        """Names the images and masks of the items; None with a transform, which may do anything to them."""
        return None if self.transform is not None else f"{self._fingerprint()}-{self.with_masks}"

    def _fingerprint(self) -> str:
        files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("."))
        source = "".join(path.read_text(encoding="utf-8") for path in files)
        arguments = (self.length, self.start, self._split_seed, self.size, self.prevalence)
        return hashlib.sha256(f"{arguments}{source}".encode()).hexdigest()[:24]


def split_seed(seed: int, split: str) -> int:
    """Seed of one split: PhantomXray(n, seed=s, split=p)[i] is render(i, seed=split_seed(s, p))."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected a number that is not negative.")
    return int(np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1, np.uint64)[0])


def _save(file: Path, *, images: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8]) -> None:
    with replacing(file) as partial, partial.open("wb") as stream:
        np.savez(stream, images=images, masks=masks)
