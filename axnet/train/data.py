"""A data set held as 8-bit tensors, in memory or in files that the system caches, and batches cut from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from axnet.data.findings import organs_to_anatomies
from axnet.data.image import StrPath
from axnet.imaging import resize
from axnet.models.preprocessing import Preprocessing
from axnet.train.labels import checked_labels

_CHUNK = 32
_MEMORY_SHARE = 0.5


class XraySource(Protocol):
    """A data set of radiographs, as NIHChestXray and PhantomXray are."""

    findings: tuple[str, ...]

    @property
    def ids(self) -> list[str]: ...  # noqa: D102
    @property
    def patients(self) -> list[str]: ...  # noqa: D102
    @property
    def labels(self) -> npt.NDArray[np.float32]: ...  # noqa: D102
    @property
    def split_hash(self) -> str: ...  # noqa: D102
    def __len__(self) -> int: ...  # noqa: D105
    def __getitem__(self, index: int) -> dict[str, Any]: ...  # noqa: D105


class SegmenterLike(Protocol):
    """What this module needs of axnet.segment.Segmenter."""

    def predict_batch(self, images: Tensor) -> Tensor:
        """Organ probabilities [N,3,H,W] of images [N,1,H,W] in [0,1]."""
        ...

    def plausible_batch(self, images: Tensor) -> Tensor:
        """The same, with a mean anatomy where the organs found are implausible."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, by which kept masks are found again."""
        ...


@dataclass(frozen=True)
class XraySet:
    """Radiographs ready for training.

    images: uint8 [N,1,S,S]; masks: uint8 [N,A,S,S] (255 = 1) or None; labels: float32 [N,K] in the order of findings,
    0, 1, or NaN for unknown;
    ids, patients: one per image; split_hash: names the split in reports; preprocessing: how the images were made.
    """

    images: Tensor
    masks: Tensor | None
    labels: Tensor
    findings: tuple[str, ...]
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    split_hash: str
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> XraySet:
        """The images of these positions, in their order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            images=self.images[index],
            masks=None if self.masks is None else self.masks[index],
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in indices),
            patients=tuple(self.patients[i] for i in indices),
        )

    def split_by_patient(self, fraction: float, seed: int = 0) -> tuple[XraySet, XraySet]:
        """Two parts that share no patient, the second with about this fraction of the patients (at least one)."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1.")
        names = sorted(set(self.patients))
        if len(names) < 2:
            raise ValueError(f"the set has {len(names)} patients, expected two or more to split.")
        order = np.random.default_rng([seed, len(names)]).permutation(len(names))
        count = min(max(1, round(fraction * len(names))), len(names) - 1)
        second = {names[position] for position in order[:count]}
        where = [patient in second for patient in self.patients]
        return (
            self.subset([index for index, inside in enumerate(where) if not inside]),
            self.subset([index for index, inside in enumerate(where) if inside]),
        )


def collect(
    source: XraySource,
    preprocessing: Preprocessing,
    *,
    workers: int = 0,
    folder: StrPath | None = None,
    progress: Callable[[int], None] | None = None,
) -> XraySet:
    """Read a data set once into 8-bit tensors.

    workers: processes that read or render. folder: a folder for memory-mapped files, for sets larger than the memory;
    None holds the set in memory. progress: called with the number of images done so far.
    Masks are kept where the items carry them. Raises ValueError when the set is empty, or too large for the memory.
    """
    count = len(source)
    if count == 0:
        raise ValueError("source has no images, expected one or more.")
    items = _Stored(source, preprocessing)
    first = items[0]
    shape = (count, *first[0].shape), (None if first[1] is None else (count, *first[1].shape))
    if folder is None:
        _check_memory(sum(int(np.prod(part)) for part in shape if part is not None))
    stem = None if folder is None else Path(folder)
    images = _allocate(stem, f"images-{source.split_hash[:16]}-{preprocessing.size}.npy", shape[0])
    masks = (
        None
        if shape[1] is None
        else _allocate(stem, f"masks-{source.split_hash[:16]}-{preprocessing.size}.npy", shape[1])
    )
    loader = DataLoader(
        cast("Dataset[Any]", items),
        batch_size=_CHUNK,
        num_workers=min(workers, max(1, count // _CHUNK)) if workers else 0,
        collate_fn=_stack,
    )
    done = 0
    for batch_images, batch_masks in loader:
        images[done : done + len(batch_images)] = batch_images
        if masks is not None:
            masks[done : done + len(batch_images)] = batch_masks
        done += len(batch_images)
        if progress is not None:
            progress(done)
    return XraySet(
        images=torch.from_numpy(images),
        masks=None if masks is None else torch.from_numpy(masks),
        labels=checked_labels(source.labels, source.findings, source.ids),
        findings=tuple(source.findings),
        ids=tuple(source.ids),
        patients=tuple(source.patients),
        split_hash=source.split_hash,
        preprocessing=preprocessing,
    )


def with_predicted_masks(
    data: XraySet, segmenter: SegmenterLike, *, fallback: bool = True, batch_size: int = 64
) -> XraySet:
    """The same set with the masks of lungs and heart that a segmenter finds, uint8 [N,2,S,S].

    fallback: whether films on which they are implausible get the segmenter's mean anatomy.
    """
    predict = segmenter.plausible_batch if fallback else segmenter.predict_batch
    masks = torch.empty((len(data), 2, *data.images.shape[-2:]), dtype=torch.uint8)
    for start in range(0, len(data), batch_size):
        batch = data.images[start : start + batch_size].to(torch.float32).div_(255)
        prob = organs_to_anatomies(predict(batch).float().cpu())
        masks[start : start + batch_size] = prob.mul(255).round_().to(torch.uint8)
    return replace(data, masks=masks)


def with_blank_masks(data: XraySet) -> XraySet:
    """The same set with empty masks, for a classifier that ignores them."""
    return replace(data, masks=torch.zeros((), dtype=torch.uint8).expand(len(data), 2, *data.images.shape[-2:]))


def measured(data: XraySet) -> Preprocessing:
    """The set's preprocessing with mean and std of its own grey values, which is how a training set defines them."""
    histogram = torch.zeros(256, dtype=torch.float64)
    for chunk in data.images.split(1024):
        histogram += torch.bincount(chunk.flatten(), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (histogram @ level) / histogram.sum()
    variance = (histogram @ (level - mean) ** 2) / histogram.sum()
    return replace(data.preprocessing, mean=float(mean), std=float(variance.sqrt().clamp(min=1e-3)))


class Batches(Dataset[dict[str, Tensor]]):
    """Serves a whole batch per request: image and mask uint8, label float32, index int64."""

    def __init__(self, data: XraySet) -> None:
        """data must carry masks."""
        if data.masks is None:
            raise ValueError("data has no masks, expected them in the items or from a segmenter.")
        self.data = data
        self.masks = data.masks

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these positions."""
        index = torch.as_tensor(indices, dtype=torch.long)
        return {
            "image": self.data.images[index],
            "mask": self.masks[index],
            "label": self.data.labels[index],
            "index": index,
        }


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for Batches, whose answers are batches already."""
    return batch


class _Stored(Dataset[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]):
    def __init__(self, source: XraySource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        if get_worker_info() is not None:
            torch.set_num_threads(1)
        item = self.source[index]
        image = self.preprocessing.store(item["image"][0].numpy())[None]
        if "mask" not in item:
            return image, None
        mask = resize(item["mask"].numpy(), self.preprocessing.size)
        return image, np.rint(mask.clip(0, 1) * 255).astype(np.uint8)


def _stack(
    items: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    masks = [mask for _, mask in items if mask is not None]
    return np.stack([image for image, _ in items]), np.stack(masks) if masks else None


def _allocate(folder: Path | None, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    if folder is None:
        return np.empty(shape, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.uint8, shape=shape)


def _check_memory(needed: int) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if needed > _MEMORY_SHARE * free:
        raise ValueError(
            f"the set takes {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB of free memory, expected at most half: "
            "name a folder for memory-mapped files."
        )
