"""Images and masks of a set: a tensor, or packed films of which each batch is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from axnet.data.findings import organs_to_anatomies
from axnet.data.packed import runs
from axnet.data.packed.films import PackedFilms
from axnet.data.packed.shards import Film
from axnet.imaging import resize
from axnet.models.preprocessing import Preprocessing

_FULL = np.uint8(255)


class Pixels(Protocol):
    """uint8 [N,C,S,S], as a tensor or as if it were one."""

    @property
    def shape(self) -> Any: ...  # noqa: D102
    def __len__(self) -> int: ...  # noqa: D105
    def __getitem__(self, index: Any) -> Tensor: ...  # noqa: D105
    def split(self, size: int) -> Any:
        """Parts of so many images, in order."""
        ...


class Reading(Protocol):
    """Where images and masks of a batch come from. channels: of the masks."""

    preprocessing: Preprocessing
    channels: int

    def images(self, index: npt.NDArray[np.int64]) -> Tensor: ...  # noqa: D102
    def masks(self, index: npt.NDArray[np.int64]) -> Tensor: ...  # noqa: D102


class _Packed:
    """Films as they are stored to what a classifier takes; images and masks of one batch are read together."""

    def __init__(self, films: PackedFilms, preprocessing: Preprocessing) -> None:
        packed = films.manifest
        if packed.size is not None and packed.size < preprocessing.size:
            raise ValueError(
                f"size is {preprocessing.size}, but the packed films of '{films.root}' have {packed.size} pixels: "
                f"expected at most that, or films that are packed larger."
            )
        if packed.size is not None and packed.percentiles != preprocessing.percentiles:
            raise ValueError(
                f"the packed films of '{films.root}' are stretched by percentiles {packed.percentiles}, expected "
                f"{preprocessing.percentiles}."
            )
        self.films = films
        self.channels = 2
        self.preprocessing = preprocessing
        self.masked = packed.masks is not None
        self._last: tuple[bytes, Tensor, Tensor | None] | None = None
        self._drawn = False  # whether masks are asked for at all: a classifier may take none

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def images(self, index: npt.NDArray[np.int64]) -> Tensor:
        return self._batch(index)[0]

    def masks(self, index: npt.NDArray[np.int64]) -> Tensor:
        if not self._drawn:
            self._drawn, self._last = True, None
        masks = self._batch(index)[1]
        assert masks is not None
        return masks

    def _batch(self, index: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        key = index.tobytes()
        if self._last is None or self._last[0] != key:
            size = self.preprocessing.size
            images = torch.empty(len(index), 1, size, size, dtype=torch.uint8)
            masks = torch.empty(len(index), 2, size, size, dtype=torch.uint8) if self._drawn else None
            for place, which in enumerate(index.tolist()):
                drawn = None if masks is None else masks.numpy()[place]
                if not self._copied(which, images.numpy()[place, 0], drawn):
                    film = self.films.film(which, masks=self._drawn)
                    images.numpy()[place, 0] = self._image(film)
                    if drawn is not None:
                        drawn[...] = self._mask(film)
            self._last = (key, images, masks)
        return self._last[1:]

    def _copied(self, which: int, image: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8] | None) -> bool:
        """Whether a film is there in this size: then it is copied without all that lies between, and is the same."""
        size = self.preprocessing.size
        content = self.films.content(which) if self.films.manifest.size == size else None
        if content is None or (masks is not None and not any(part.size for part in content[1:])):
            return False
        pixels, *organs = content
        image[...] = np.frombuffer(pixels, np.uint8).reshape(size, size)
        if masks is not None:
            left, right, heart = (runs.decode(data, size, size, _FULL) for data in organs)
            np.maximum(left, right, out=masks[0])
            masks[1] = heart
        return True

    def _image(self, film: Film) -> npt.NDArray[np.uint8]:
        if self.films.manifest.size is None:
            return self.preprocessing.store(film.pixels)
        if film.pixels.shape[0] == self.preprocessing.size:
            return film.pixels
        return np.rint(resize(film.pixels, self.preprocessing.size)).astype(np.uint8)

    def _mask(self, film: Film) -> npt.NDArray[np.uint8]:
        if film.masks is None:
            raise ValueError(f"packed films '{self.films.root}': film '{film.image}' has no masks.")
        masks = organs_to_anatomies(film.masks)
        if masks.shape[-2:] == (self.preprocessing.size,) * 2:
            return masks.view(np.uint8) * np.uint8(255)
        return np.rint(resize(masks, self.preprocessing.size) * 255).astype(np.uint8)


class Items:
    """Images and masks of items (image [1,S,S], mask [A,S,S] or None; uint8), each read when it is asked for."""

    def __init__(self, items: Any, preprocessing: Preprocessing) -> None:
        """Read the first item, which tells whether there are masks."""
        self.items, self.preprocessing = items, preprocessing
        mask = items[0][1]
        self.channels = 0 if mask is None else len(mask)
        self._last: tuple[bytes, list[Any]] | None = None

    def images(self, index: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [N,1,S,S]."""
        return torch.from_numpy(np.stack([image for image, _ in self._batch(index)]))

    def masks(self, index: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [N,A,S,S]."""
        return torch.from_numpy(np.stack([mask for _, mask in self._batch(index)]))

    def _batch(self, index: npt.NDArray[np.int64]) -> list[Any]:
        if self._last is None or self._last[0] != index.tobytes():
            self._last = (index.tobytes(), [self.items[place] for place in index.tolist()])
        return self._last[1]


class Drawn:
    """Masks that are drawn on images when they are asked for. draw: images uint8 to masks uint8 [N,2,S,S]."""

    def __init__(self, pixels: Pixels, preprocessing: Preprocessing, draw: Callable[[Tensor], Tensor]) -> None:
        """Nothing is drawn yet."""
        self.pixels, self.preprocessing, self.draw = pixels, preprocessing, draw
        self.channels = 2

    def images(self, index: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [N,1,S,S]."""
        return self.pixels[index]

    def masks(self, index: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [N,2,S,S]."""
        return self.draw(self.pixels[index])


class PixelsOnDemand:
    """Images uint8 [N,1,S,S] or masks uint8 [N,A,S,S], read when they are asked for; never all at once.

    index: positions in the set that the rows are of.
    """

    def __init__(self, reading: Reading, index: npt.NDArray[np.int64], *, masks: bool) -> None:
        """Nothing is read yet."""
        self._reading, self._index, self._masks = reading, index, masks

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, C, S, S]."""
        size = self._reading.preprocessing.size
        return (len(self._index), self._reading.channels if self._masks else 1, size, size)

    def __len__(self) -> int:
        """Number of films."""
        return len(self._index)

    def __getitem__(self, index: Any) -> Tensor:
        """The films of a slice, or of an array or tensor of positions; a tensor of its own."""
        chosen = self._index[index.numpy() if isinstance(index, Tensor) else index]
        read = self._reading.masks if self._masks else self._reading.images
        found = read(np.atleast_1d(chosen))
        return found if chosen.ndim else found[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """Parts of so many films, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, indices: Sequence[int]) -> PixelsOnDemand:
        """The films of these positions; none is read."""
        return PixelsOnDemand(self._reading, self._index[np.asarray(indices, dtype=np.int64)], masks=self._masks)


class ChainedPixels:
    """The images, or masks, of several sets one after the other."""

    def __init__(self, parts: Sequence[Pixels], index: npt.NDArray[np.int64] | None = None) -> None:
        """index: positions in the chain, None for all."""
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._index = np.arange(self._ends[-1]) if index is None else index

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, S, S]."""
        return (len(self._index), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        """Number of films."""
        return len(self._index)

    def __getitem__(self, index: Any) -> Tensor:
        """The films of a slice, or of an array or tensor of positions; a tensor of its own."""
        chosen = self._index[index.numpy() if isinstance(index, Tensor) else index]
        places = np.atleast_1d(chosen)
        found = torch.empty((len(places), *self.shape[1:]), dtype=torch.uint8)
        which = np.searchsorted(self._ends, places, side="right")
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(which == number)
            if len(rows):
                begin = self._ends[number - 1] if number else 0
                found[torch.from_numpy(rows)] = part[torch.from_numpy(places[rows] - begin)]
        return found if chosen.ndim else found[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """Parts of so many films, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, indices: Sequence[int]) -> ChainedPixels:
        """The films of these positions; none is read."""
        return ChainedPixels(self._parts, self._index[np.asarray(indices, dtype=np.int64)])


def packed_pixels(films: PackedFilms, preprocessing: Preprocessing) -> tuple[PixelsOnDemand, PixelsOnDemand | None]:
    """Images and masks of packed films, None where they have no masks.

    Raises ValueError for films that are packed smaller, or with other percentiles, than preprocessing asks for.
    """
    reading = _Packed(films, preprocessing)
    index = np.arange(len(films), dtype=np.int64)
    masks = PixelsOnDemand(reading, index, masks=True) if reading.masked else None
    return PixelsOnDemand(reading, index, masks=False), masks


def chained(parts: Sequence[Pixels]) -> Pixels:
    """Several sets one after the other: a tensor where all are."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else ChainedPixels(parts)


def subset(pixels: Pixels, indices: Sequence[int]) -> Pixels:
    """The images of these positions, in their order."""
    if isinstance(pixels, PixelsOnDemand | ChainedPixels):
        return pixels.subset(indices)
    return pixels[torch.as_tensor(indices, dtype=torch.long)]
