"""From what the user named to sets ready for training, with masks of the set or of a segmenter."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from axnet.data import Joined, read_image
from axnet.data.files import locked, replacing
from axnet.data.labelled import some
from axnet.data.packed.films import dataset as packed_dataset
from axnet.data.packed.manifest import STATE, Place, is_packed
from axnet.data.sets import DEFAULT, DataSet, Request, find, load, looks_like
from axnet.data.uncertainty import ForAllSets, check_entries
from axnet.models.preprocessing import Preprocessing
from axnet.paths import StrPath
from axnet.progress import SILENT, Progress
from axnet.train.data import (
    SegmenterLike,
    XraySet,
    XraySource,
    collect,
    with_masks_on_demand,
    with_predicted_masks,
)

Part = Literal["train", "test"]


@dataclass(frozen=True)
class DataConfig:
    """Which radiographs.

    data: name of a data set (axnet.data.sets), such as "phantom", drawn from seed, or "nih", the folder root of the
    official download. train_images, test_images: how many to draw of a set that is drawn. findings: labels and their
    order, None for the set's own. workers: processes that read or draw. cache: folder for memory-mapped files, None to
    hold sets in memory. root may also be a folder or URL of packed films, which tell themselves; files of a URL are
    fetched to cache. uncertain, blank, views, split: what the set's reader takes by these
    names, None for its default. data, root and split may each name several, with commas between them: the sets are
    joined (axnet.data.Joined), each with the labels that it has.
    Raises ValueError for an unknown name, a set that needs root without one, or what its reader does not take.
    """

    data: str = "phantom"
    root: str | None = None
    seed: int = 0
    train_images: int = 2500
    test_images: int = 2000
    findings: tuple[str, ...] | None = None
    workers: int = 2
    cache: str | None = None
    uncertain: Any = None
    blank: str | None = None
    views: str | tuple[str, ...] | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        """Check the names; of packed films the data set is the one that they were made of."""
        if self.members:
            self._check_options()
            return
        if self.packed and self.root is not None:
            made_of = Place(self.root, self.cache).manifest().data
            if self.data not in (DEFAULT, made_of):
                raise ValueError(f"data is '{self.data}', but root '{self.root}' holds packed films of '{made_of}'.")
            object.__setattr__(self, "data", made_of)
        self._check_options()

    def _check_options(self) -> None:
        accepted = self.dataset.options
        for option in self._options():
            if option not in accepted:
                raise ValueError(f"data '{self.data}' takes no {option}, expected of these options {accepted}.")

    def _options(self) -> dict[str, Any]:
        given = {"uncertain": self.uncertain, "blank": self.blank, "views": self.views}
        return {name: value for name, value in given.items() if value is not None}

    @cached_property
    def members(self) -> dict[str, DataConfig]:
        """The sets that are joined, by their names in ids; none where there is one set alone.

        Each takes those of the options that its reader knows. Raises ValueError where numbers of names differ.
        """
        names, roots = self.data.split(","), [self.root]
        if self.root is not None and (len(names) > 1 or ("," in self.root and not Path(self.root).exists())):
            roots = [root or None for root in self.root.split(",")]
        if len(names) == len(roots) == 1:
            return {}
        if self.data == DEFAULT:
            names = [DEFAULT] * len(roots)  # packed films tell themselves
        splits = [self.split] * len(names) if self.split is None or "," not in self.split else self.split.split(",")
        if not len(names) == len(roots) == len(splits):
            raise ValueError(
                f"data names {len(names)} sets, root {len(roots)} folders and split {len(splits)} splits, expected as "
                "many of each, with commas between them."
            )
        found: dict[str, DataConfig] = {}
        for name, root, split in zip(names, roots, splits, strict=True):
            plain = replace(self, data=name, root=root, split=split, uncertain=None, blank=None, views=None)
            taken = {option: value for option, value in self._options().items() if option in plain.dataset.options}
            if isinstance(taken.get("uncertain"), dict):
                taken["uncertain"] = ForAllSets(taken["uncertain"])
            label = plain.data
            while label in found:
                label += "-again"
            found[label] = replace(plain, **taken)
        return found

    @cached_property
    def dataset(self) -> DataSet:
        """The entry of data among the data sets, that of packed films, or what joined sets have in common."""
        if self.members:
            sets = [member.dataset for member in self.members.values()]
            return DataSet(
                title=" + ".join(one.title for one in sets),
                root=None,
                options=tuple(dict.fromkeys(option for one in sets for option in one.options)),
                real=all(one.real for one in sets),
                masked=all(one.masked for one in sets),
            )
        if self.packed and self.root is not None:
            return packed_dataset(self.root, self.cache)
        return find(self.data, root=self.root)

    @cached_property
    def packed(self) -> bool:
        """Whether root is a folder or URL of packed films (axnet prepare), or any of several is."""
        if self.members:
            return any(member.packed for member in self.members.values())
        return is_packed(self.root)

    @property
    def named(self) -> str:
        """The names of the data sets, also of packed ones."""
        return ",".join(member.data for member in self.members.values()) if self.members else self.data

    def patients_of(self, patients: Iterable[str]) -> set[str]:
        """Different patients of a set that source gave, each after the name of its data set, as Joined has them."""
        return {patient if self.members else f"{self.data}/{patient}" for patient in patients}

    def source(self, part: Part, *, size: int = 128, with_masks: bool = True) -> XraySource:
        """The data set of one part: of a downloaded one its official lists.

        size, with_masks: of a set that is drawn. Raises ValueError for a root of a set that is drawn, which holds no
        packed films either: a name that was mistyped must not end in a classifier of phantoms.
        """
        if self.members:
            sets = {
                name: member.source(part, size=size, with_masks=with_masks) for name, member in self.members.items()
            }
            if isinstance(self.uncertain, Mapping):
                check_entries(self.uncertain, [finding for one in sets.values() for finding in one.findings])
            return Joined(sets, self.findings)
        found = self.dataset
        if self.root is not None and not self.packed and found.root is None:
            like = looks_like(Path(self.root), self.data)
            hint = "" if like is None else f"; it looks like {load(like).title} (data '{like}')"
            if (Path(self.root) / STATE).is_dir():
                hint = "; axnet prepare has not come to its end there"
            raise ValueError(
                f"root '{self.root}' is no folder of axnet prepare, and data '{self.data}' is drawn and takes none, "
                f"expected data, which names the set in root{hint}."
            )
        options = self._options()
        if part == "test" and "allow_absent" in found.options:
            options["allow_absent"] = True  # a classifier of another set is measured on the findings that both have
        request = Request(
            split=found.split(part, self.split),
            options=options,
            root=self.root,
            findings=self.findings,
            seed=self.seed,
            count=self.train_images if part == "train" else self.test_images,
            size=size,
            with_masks=with_masks,
        )
        assert found.open is not None
        return cast(XraySource, found.open(request))


def open_part(
    config: DataConfig,
    part: Part,
    preprocessing: Preprocessing,
    *,
    segmenter: SegmenterLike | None = None,
    on_demand: bool = False,
    progress: Progress = SILENT,
) -> XraySet:
    """Read one part into memory, with the segmenter's masks when one is given, else with those of the set.

    The segmenter's masks are computed once and, with a cache folder, kept there for the same images and segmenter.
    on_demand: read and draw nothing now, but each batch when it is asked for, as processes do that share the films out.
    progress: told of the two steps, reading and drawing masks.
    """
    source = config.source(part, size=preprocessing.size, with_masks=segmenter is None)
    return prepared(config, source, part, preprocessing, segmenter=segmenter, on_demand=on_demand, progress=progress)


def prepared(
    config: DataConfig,
    source: XraySource,
    part: Part,
    preprocessing: Preprocessing,
    *,
    segmenter: SegmenterLike | None = None,
    on_demand: bool = False,
    progress: Progress = SILENT,
) -> XraySet:
    """As open_part, of the data set that config.source gave for the part."""
    if isinstance(source, Joined):
        for (one, other), films in source.overlap().items():
            progress.say(f"{one} and {other} have {len(films)} films in common, by their names: {some(films)}")
    if on_demand:
        data = collect(source, preprocessing, on_demand=True)
        return data if segmenter is None else with_masks_on_demand(data, segmenter, fallback=config.dataset.real)
    with progress.step(f"reading the {part} images", len(source)) as done:
        data = collect(source, preprocessing, workers=config.workers, folder=config.cache, progress=done)
    if segmenter is None:
        return data
    # the checks of the organs know real films; a phantom's organs are drawn wider and narrower than those
    with progress.step(f"drawing masks on the {part} images", len(data)) as done:
        return cached_masks(data, segmenter, config.cache, fallback=config.dataset.real, progress=done)


def cached_masks(
    data: XraySet,
    segmenter: SegmenterLike,
    folder: StrPath | None,
    *,
    fallback: bool = True,
    progress: Callable[[int], None] | None = None,
) -> XraySet:
    """As with_predicted_masks, kept in folder under the content of images and segmenter; None keeps nothing."""
    if folder is None:
        return with_predicted_masks(data, segmenter, fallback=fallback, progress=progress)
    file = Path(folder) / f"anatomy-{_content(data, segmenter)}{'' if fallback else '-raw'}.npz"
    lock = file.with_name(f".{file.name}.lock")
    with locked(lock):  # of several processes that ask for the same masks, one draws them
        if not file.is_file():
            result = with_predicted_masks(data, segmenter, fallback=fallback, progress=progress)
            with replacing(file) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, masks=cast(torch.Tensor, result.masks).numpy())
        lock.unlink(missing_ok=True)
    try:
        with np.load(file, allow_pickle=False) as stored:
            return replace(data, masks=torch.from_numpy(stored["masks"]))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"cache file '{file}' is damaged ({error}); remove it to have it made again.") from error


def read_images(paths: Sequence[StrPath], preprocessing: Preprocessing) -> XraySet:
    """Image files without labels as a set: labels are float32 [N,0], ids the file names.

    Raises as axnet.data.read_image does, TypeError for one path that is not in a list.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise TypeError(f"paths is a {type(paths).__name__}, expected a list of image files.")
    if not paths:
        raise ValueError("paths is empty, expected one or more image files.")
    images = [preprocessing.store(read_image(path)) for path in paths]
    return unlabelled(images, [str(path) for path in paths], preprocessing)


def unlabelled(images: Sequence[npt.NDArray[np.uint8]], ids: Sequence[str], preprocessing: Preprocessing) -> XraySet:
    """Images [size,size] of preprocessing.store as a set without labels and masks."""
    return XraySet(
        images=torch.from_numpy(np.stack(images)[:, None]),
        masks=None,
        labels=torch.zeros(len(ids), 0),
        findings=(),
        ids=tuple(ids),
        patients=tuple(ids),
        split_hash="",
        preprocessing=preprocessing,
    )


def _content(data: XraySet, segmenter: SegmenterLike) -> str:
    digest = hashlib.sha256()
    for chunk in data.images.split(64):
        digest.update(chunk.numpy().tobytes())
    for name, value in sorted(segmenter.state_dict().items()):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)  # bfloat16 is no type of numpy's
        digest.update(name.encode() + content.numpy().tobytes())
    return digest.hexdigest()[:24]
