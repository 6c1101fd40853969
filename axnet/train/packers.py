"""What each process of `axnet prepare` does: the films of one shard, read, resized, drawn on and written."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from axnet.data.image import read_stored
from axnet.data.mask_table import MaskTable
from axnet.data.packed.manifest import sha256
from axnet.data.packed.shards import Film, writing
from axnet.imaging import grey_values, resize
from axnet.models.preprocessing import Preprocessing
from axnet.segment import Segmenter

_DRAWN_TOGETHER = 8
UNREADABLE = (ValueError, OSError, ImportError, KeyError)
"""What reading a film, or its masks, may raise."""


@dataclass(frozen=True)
class Packer:
    """How films are packed.

    size: side in pixels; None keeps each film as it is: 8 or 16 bits, its own size, nothing stretched. percentiles: as
    axnet.models.Preprocessing. segmenter: file of the one that draws the masks; table: of masks (axnet.data.MaskTable);
    own_masks: whether items' organ_mask is packed. fallback: whether films on which what is drawn is implausible get
    the segmenter's mean anatomy. device: where the segmenter computes. out: the folder.
    """

    size: int | None = 512
    percentiles: tuple[float, float] | None = (1.0, 99.0)
    segmenter: str | None = None
    table: str | None = None
    own_masks: bool = False
    fallback: bool = True
    device: str = "cpu"
    out: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What the films are made by, for manifest and plan."""
        return {"size": self.size, "percentiles": None if self.size is None else self.percentiles}


@dataclass(frozen=True)
class Task:
    """The films of one shard: id, file (None where the set draws them), split and position in it."""

    number: int
    films: list[tuple[str, str | None, str, int]]


@dataclass(frozen=True)
class Shard:
    """A shard that is whole. failed: id and reason of the films that are not in it."""

    films: int
    bytes: int
    sha256: str
    file: str
    failed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Shard:
        """From plain values."""
        return cls(**{**said, "failed": tuple((name, reason) for name, reason in said["failed"])})

    def record(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {"file": self.file, "films": self.films, "bytes": self.bytes, "sha256": self.sha256}


class _Worker:
    """What a process holds while it packs."""

    def __init__(self, packer: Packer, drawn: Mapping[str, Any]) -> None:
        self.packer = packer
        self.drawn = drawn
        self.store = None if packer.size is None else Preprocessing(packer.size, packer.percentiles).store
        self.table = None if packer.table is None else MaskTable(packer.table)
        self.segmenter = None if packer.segmenter is None else Segmenter.load(packer.segmenter).to(packer.device)

    def film(self, name: str, path: str | None, split: str, index: int) -> Film:
        masks: npt.NDArray[Any] | None = None
        if path is not None:
            image = read_stored(path)
        else:
            item = self.drawn[split][index]
            image = item["image"][0].numpy()
            if self.packer.own_masks:
                masks = item["organ_mask"].numpy()
        pixels = levels(image) if self.store is None else self.store(image)
        if self.table is not None:
            masks = self.table.coverage(name, (pixels.shape[0], pixels.shape[1]))
        if masks is not None:
            masks = resize(masks, (pixels.shape[0], pixels.shape[1])) >= 0.5
        return Film(name, pixels, masks)

    def drawn_on(self, films: list[Film]) -> list[Film]:
        """Films with the segmenter's masks; those of one size together."""
        if self.segmenter is None:
            return films
        find = self.segmenter.plausible_batch if self.packer.fallback else self.segmenter.predict_batch
        together = self.store is not None
        found: list[Film] = []
        for group in [films] if together else [[film] for film in films]:
            images = torch.from_numpy(np.stack([grey_values(film.pixels) for film in group]))[:, None]
            for film, prob in zip(group, find(images).float().cpu().numpy(), strict=True):
                found.append(Film(film.image, film.pixels, prob >= 0.5))
        return found


_worker: _Worker
_count: Callable[[], None]


def start(packer: Packer, drawn: Mapping[str, Any], counter: Any = None) -> None:
    """Begin in this process. drawn: the sets that have no files; counter: shared, of the films that are done."""
    global _worker
    if counter is not None:  # in a process of its own
        torch.set_num_threads(1)
        threading.Thread(target=_end_with_parent, daemon=True).start()

        def add() -> None:
            with counter.get_lock():
                counter.value += 1

        count_into(add)
    _worker = _Worker(packer, drawn)


def _end_with_parent() -> None:
    """Where the command is killed, its processes must not write on, nor hold its lock."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def count_into(count: Callable[[], None]) -> None:
    """What is called after each film."""
    global _count
    _count = count


def pack(task: Task) -> Shard:
    """Write one shard."""
    path = Path(_worker.packer.out) / f"shard-{task.number:05d}.arrow"
    failed: list[tuple[str, str]] = []
    films = 0
    with writing(path) as add:
        for begin in range(0, len(task.films), _DRAWN_TOGETHER):
            ready = []
            for name, file, split, index in task.films[begin : begin + _DRAWN_TOGETHER]:
                try:
                    ready.append(_worker.film(name, file, split, index))
                except UNREADABLE as error:
                    reason = error.args[0] if isinstance(error, KeyError) else error
                    failed.append((name, " ".join(str(reason).split())))
                    _count()
            for film in _worker.drawn_on(ready) if ready else ():
                add(film)
                films += 1
                _count()
    return Shard(films, path.stat().st_size, sha256(path), path.name, tuple(failed))


def levels(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey values as they are, in 8 or 16 bits: stored ones, or those in [0,1] of a set that draws or of DICOM."""
    if image.dtype.kind == "u":
        return image
    eight = np.rint(image * np.float32(255))
    if np.abs(image * np.float32(255) - eight).max() < 1e-3:
        return eight.astype(np.uint8)
    return np.rint(image * np.float32(65535)).astype(np.uint16)
