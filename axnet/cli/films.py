"""The films that `axnet predict` is given: files and folders, or packed films."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from axnet.cli.options import UNREADABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from axnet.data.folder import ImageFile
    from axnet.models import Preprocessing
    from axnet.predictor import Prediction, Predictor
    from axnet.train import XraySet
    from axnet.train.shares import Share


Part = tuple[list[Any], list[tuple[Path, str]]]
"""What is written of some films, and those that failed, each with the reason."""


def parts(share: Share, count: int, size: int, work: Callable[[Sequence[int]], Part]) -> Iterator[Part]:
    """What work makes of `count` films, `size` at a time, in their order; of several processes for the first alone."""
    for start in range(0, count, size * share.count):
        begin = start + size * share.rank
        mine = range(begin, min(begin + size, count))
        yield from share.gathered(work(mine) if mine else ([], []))


def named(images: list[str]) -> Films:
    """What the user named: files and folders, or packed films."""
    from axnet.data.folder import image_files
    from axnet.data.packed.manifest import is_packed

    if not all(images):
        raise ValueError("images holds an empty name, expected files or folders.")
    if not any(is_packed(image) for image in images):
        return _Files(image_files(map(Path, images), file_id=str))
    if len(images) > 1:
        raise ValueError(f"images has {len(images)} entries with packed films among them, expected these alone.")
    return _Packed(images[0])


class Films(Protocol):
    """Films to be scored. masked: whether they bring masks; packed: whether they have no files of their own."""

    masked: bool
    packed: bool
    files: list[ImageFile]

    def pixels(self, index: int) -> NDArray[Any]:
        """Grey values [H,W] in [0,1]."""
        ...

    def found(self, predictor: Predictor, indices: Sequence[int]) -> list[Prediction]:
        """What a predictor says of the films of these positions."""
        ...

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        """Those of these positions that can be read, None where none can; the others are added to failed."""
        ...


class _Files:
    masked = packed = False

    def __init__(self, files: list[ImageFile]) -> None:
        self.files = files

    def pixels(self, index: int) -> NDArray[Any]:
        from axnet.data import read_image

        return read_image(self.files[index].path)

    def found(self, predictor: Predictor, indices: Sequence[int]) -> list[Prediction]:
        return predictor.predict([self.files[index].path for index in indices], len(indices))

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        from axnet.data.image import read_stored
        from axnet.train.sources import unlabelled

        stored, ids = [], []
        for file in self.files[start:stop]:
            try:
                stored.append(preprocessing.store(read_stored(file.path)))
                ids.append(file.id)
            except UNREADABLE as error:
                failed.append((file.path, " ".join(str(error).split())))
        return unlabelled(stored, ids, preprocessing) if ids else None


class _Packed:
    packed = True

    def __init__(self, root: str) -> None:
        from axnet.data.folder import ImageFile
        from axnet.data.packed.films import PackedFilms

        self.films = PackedFilms(root)
        self.files = [ImageFile(name, Path(name)) for name in self.films.ids]
        self.set: XraySet | None = None
        self.masked = self.films.manifest.masks is not None

    def pixels(self, index: int) -> NDArray[Any]:
        from axnet.imaging import grey_values

        return grey_values(self.films.film(index, masks=False).pixels)

    def found(self, predictor: Predictor, indices: Sequence[int]) -> list[Prediction]:
        import numpy as np

        stored = self._prepared(predictor.info.preprocessing).images[np.asarray(indices)]
        return predictor.read([self.pixels(index) for index in indices], stored.numpy()[:, 0])

    def _prepared(self, preprocessing: Preprocessing) -> XraySet:
        from axnet.train import collect

        if self.set is None:
            self.set = collect(self.films, preprocessing)
        return self.set

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        whole_set = self._prepared(preprocessing)
        try:
            part = whole_set.subset(range(start, stop))
            part.images[:]  # read now, and kept for what follows
            return part
        except UNREADABLE:
            whole = []
        for index in range(start, stop):
            try:
                self.films.film(index)
                whole.append(index)
            except UNREADABLE as error:
                failed.append((Path(self.films.ids[index]), str(error)))
        return whole_set.subset(whole) if whole else None
