"""A data set as 8-bit tensors, in memory, in files that the system caches or packed, and batches cut from it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from axnet.data.findings import organs_to_anatomies
from axnet.data.joined import Joined
from axnet.data.packed.films import PackedFilms
from axnet.imaging import resize
from axnet.models.preprocessing import Preprocessing
from axnet.paths import StrPath
from axnet.train.cache import kept, key_of
from axnet.train.handing import Batch, Slots, most_shared, room_of
from axnet.train.labels import checked_labels
from axnet.train.pixels import Drawn, Items, Pixels, PixelsOnDemand, chained, packed_pixels, subset

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

    images: uint8 [N,1,S,S]; masks: uint8 [N,A,S,S] (255 = 1) or None; both tensors, or packed films that are read batch
    by batch (axnet.train.pixels); labels: float32 [N,K] in the order of findings,
    0, 1, NaN for unknown, or between 0 and 1 to train on; ids, patients: one per image; split_hash, split_name: name
    the split in reports; preprocessing: how the images were made.
    Raises TypeError for images or masks of another type, ValueError where their numbers differ.
    """

    images: Pixels
    masks: Pixels | None
    labels: Tensor
    findings: tuple[str, ...]
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    split_hash: str
    preprocessing: Preprocessing
    split_name: str = ""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        for name, pixels in (("images", self.images), ("masks", self.masks)):
            if isinstance(pixels, Tensor) and pixels.dtype != torch.uint8:
                raise TypeError(f"{name} has dtype {pixels.dtype}, expected uint8 from 0 to 255.")
        counts = {name: getattr(self, name) for name in ("masks", "labels", "ids", "patients")}
        for name, values in counts.items():
            if values is not None and len(values) != len(self.images):
                raise ValueError(
                    f"{name} has {len(values)} entries, expected one for each of {len(self.images)} images."
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> XraySet:
        """The images of these positions, in their order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            images=subset(self.images, indices),
            masks=None if self.masks is None else subset(self.masks, indices),
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
    on_demand: bool = False,
    progress: Callable[[int], None] | None = None,
) -> XraySet:
    """Read a data set once into 8-bit tensors.

    workers: processes that read or render. folder: a folder for memory-mapped files, for sets larger than the memory,
    which later runs find again by source.fingerprint() and preprocessing; several runs may share it. None holds the
    set in memory. on_demand: read no film now, but each when it is asked for, as for one pass over a part of the set;
    folder then is not used. progress: called with the number of images done so far.
    Packed films stay where they are, and each batch is read when it is asked for; folder then is not used.
    Masks are kept where the items carry them. Raises ValueError when the set is empty, or too large for the memory.
    """
    count = len(source)
    if count == 0:
        raise ValueError("source has no images, expected one or more.")
    if isinstance(source, Joined) and any(isinstance(one, PackedFilms) for one in source.sets.values()):
        sets = [cast(XraySource, one) for one in source.sets.values()]
        parts = [collect(one, preprocessing, workers=workers, folder=folder, on_demand=on_demand) for one in sets]
        drawn = [part.masks for part in parts if part.masks is not None]
        together = chained(drawn) if len(drawn) == len(parts) else None
        return _set(source, preprocessing, chained([part.images for part in parts]), together)
    if isinstance(source, PackedFilms):
        if not source.plain:
            raise ValueError("source is PackedFilms with size, masks or transform, expected it without.")
        return _set(source, preprocessing, *packed_pixels(source, preprocessing))
    items = _Stored(source, preprocessing)
    if on_demand:
        read, order = Items(items, preprocessing), np.arange(count)
        masked = PixelsOnDemand(read, order, masks=True) if read.channels else None
        return _set(source, preprocessing, PixelsOnDemand(read, order, masks=False), masked)
    first = items[0]
    shapes: dict[str, tuple[int, ...]] = {"images": (count, *first[0].shape)}
    if first[1] is not None:
        shapes["masks"] = (count, *first[1].shape)
    batches = _batches(items, workers, progress)
    if folder is not None:
        arrays = kept(Path(folder), _cache_key(source, preprocessing), shapes, batches)
    else:
        needed = sum(math.prod(shape) for shape in shapes.values())
        _check_memory(
            needed, "the set takes", "name a folder for memory-mapped files, or pack the films (axnet prepare)"
        )
        arrays = {name: np.empty(shape, dtype=np.uint8) for name, shape in shapes.items()}
        done = 0
        for batch in batches:
            for name, array in arrays.items():
                array[done : done + len(batch[name])] = batch[name]
            done += len(batch["images"])
    masks = arrays.get("masks")
    images = torch.from_numpy(arrays["images"])
    return _set(source, preprocessing, images, None if masks is None else torch.from_numpy(masks))


def _set(source: XraySource, preprocessing: Preprocessing, images: Pixels, masks: Pixels | None) -> XraySet:
    return XraySet(
        images=images,
        masks=masks,
        labels=checked_labels(source.labels, source.findings, source.ids, smooth=True),
        findings=tuple(source.findings),
        ids=tuple(source.ids),
        patients=tuple(source.patients),
        split_hash=source.split_hash,
        preprocessing=preprocessing,
        split_name=getattr(source, "split_name", ""),
    )


def with_predicted_masks(
    data: XraySet,
    segmenter: SegmenterLike,
    *,
    fallback: bool = True,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> XraySet:
    """The same set with the masks of lungs and heart that a segmenter finds, uint8 [N,2,S,S].

    fallback: whether films on which they are implausible get the segmenter's mean anatomy. progress: called with the
    number of films done so far.
    """
    draw = _drawing(segmenter, fallback)
    shape = (len(data), 2, *data.images.shape[-2:])
    _check_memory(math.prod(shape), "the masks take", "pack them with the films (axnet prepare)")
    masks = torch.empty(shape, dtype=torch.uint8)
    for start in range(0, len(data), batch_size):
        masks[start : start + batch_size] = draw(data.images[start : start + batch_size])
        if progress is not None:
            progress(min(start + batch_size, len(data)))
    return replace(data, masks=masks)


def with_masks_on_demand(data: XraySet, segmenter: SegmenterLike, *, fallback: bool = True) -> XraySet:
    """The same as with_predicted_masks, but each batch is drawn when it is asked for, and not kept."""
    drawn = Drawn(data.images, data.preprocessing, _drawing(segmenter, fallback))
    return replace(data, masks=PixelsOnDemand(drawn, np.arange(len(data)), masks=True))


def _drawing(segmenter: SegmenterLike, fallback: bool) -> Callable[[Tensor], Tensor]:
    predict = segmenter.plausible_batch if fallback else segmenter.predict_batch

    def draw(images: Tensor) -> Tensor:
        prob = organs_to_anatomies(predict(images.to(torch.float32).div_(255)).float().cpu())
        return prob.mul(255).round_().to(torch.uint8)

    return draw


def with_blank_masks(data: XraySet) -> XraySet:
    """The same set with empty masks, for a classifier that ignores them."""
    return replace(data, masks=torch.zeros((), dtype=torch.uint8).expand(len(data), 2, *data.images.shape[-2:]))


def measured(data: XraySet) -> Preprocessing:
    """The set's preprocessing with mean and std of its own grey values, which is how a training set defines them."""
    histogram = torch.zeros(256, dtype=torch.float64)
    for chunk in data.images.split(64):
        histogram += torch.bincount(chunk.flatten(), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (histogram @ level) / histogram.sum()
    variance = (histogram @ (level - mean) ** 2) / histogram.sum()
    return replace(data.preprocessing, mean=float(mean), std=float(variance.sqrt().clamp(min=1e-3)))


class Batches(Dataset[dict[str, Tensor]]):
    """Serves a whole batch per request: image and mask uint8, label float32, index int64."""

    def __init__(self, data: XraySet) -> None:
        """data must carry masks, from 0 to 255: a largest value of 1, of masks that count 0 and 1, is an error."""
        if data.masks is None:
            raise ValueError("data has no masks, expected them in the items or from a segmenter.")
        if _largest(data.masks) == 1:
            raise ValueError("data has masks with a largest value of 1, expected uint8 from 0 to 255, 255 for inside.")
        self.data = data
        self.masks = data.masks
        self.slots: Slots | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a process that begins now, which shares the slots; any other copy is without."""
        return vars(self) if get_spawning_popen() is not None else {**vars(self), "slots": None}

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
            "mask": self.masks[:1].expand(len(index), -1, -1, -1) if _one_for_all(self.masks) else self.masks[index],
            "label": self.data.labels[index],
            "index": index,
        }


def _largest(masks: Pixels) -> int:
    """The largest value, or the first that is above 1: a set's masks are read only as far as they are empty."""
    if 0 in masks.shape:
        return 0
    if isinstance(masks, PixelsOnDemand):
        return 255  # made so
    if _one_for_all(masks):
        masks = masks[:1]
    largest = 0
    for chunk in masks.split(64):
        largest = max(largest, int(chunk.max()))
        if largest > 1:
            break
    return largest


def _one_for_all(masks: Pixels) -> bool:
    """Whether all films have the same, as blank masks are: no batch of these need be copied."""
    return isinstance(masks, Tensor) and not masks.is_contiguous() and masks.stride(0) == 0


def loader(batches: Batches, *, batch_size: int, workers: int, **options: Any) -> DataLoader[dict[str, Tensor]]:
    """A DataLoader of these batches; options: what else that takes. workers: processes that cut them."""
    pixels = [batches.data.images] + ([] if _one_for_all(batches.masks) else [batches.masks])
    numbers = [batches.data.labels[:1].nbytes, 8]  # labels and positions, where many films make them large
    size = sum(room_of(batch_size * each) for each in (*(math.prod(each.shape[1:]) for each in pixels), *numbers))
    # by default each process cuts two ahead, and one is on its way; a step holds one, and its successor waits
    count = min(3 * workers + 3, most_shared() // max(1, size))
    batches = copy(batches)  # each loader has slots of its own
    if workers and count > 1:
        with suppress(RuntimeError):  # not as much shared memory: then each tensor goes as torch sends it
            batches.slots = Slots(count, size)
    return DataLoader(batches, batch_size, num_workers=workers, collate_fn=as_is, **options)  # type: ignore[arg-type]


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for Batches, whose answers are batches already."""
    process = get_worker_info()
    return batch if process is None else Batch(batch, process.dataset.slots)  # type: ignore[attr-defined]


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


def _batches(
    items: _Stored, workers: int, progress: Callable[[int], None] | None
) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
    """Images and masks of all items in their order."""
    loader = DataLoader(
        cast("Dataset[Any]", items),
        batch_size=_CHUNK,
        num_workers=min(workers, max(1, len(items) // _CHUNK)) if workers else 0,
        collate_fn=_stack,
    )
    done = 0
    for batch in loader:
        yield batch
        done += len(batch["images"])
        if progress is not None:
            progress(done)


def _stack(
    items: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]],
) -> dict[str, npt.NDArray[np.uint8]]:
    masks = [mask for _, mask in items if mask is not None]
    return {"images": np.stack([image for image, _ in items])} | ({"masks": np.stack(masks)} if masks else {})


def _cache_key(source: XraySource, preprocessing: Preprocessing) -> str | None:
    """Names what collect writes; None where the source does not say what it holds."""
    fingerprint = getattr(source, "fingerprint", lambda: None)()
    return None if fingerprint is None else key_of((fingerprint, preprocessing.size, preprocessing.percentiles))


def _check_memory(needed: int, what: str, remedy: str) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if needed > _MEMORY_SHARE * free:
        raise ValueError(
            f"{what} {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB of free memory, expected at most half: "
            f"{remedy}."
        )
