"""Organ masks of a whole data set in one columnar file: our predictions, and CheXmask's public tables."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from axnet.data import rle
from axnet.data.findings import ORGANS
from axnet.data.image import StrPath

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        *((organ, pa.string()) for organ in ORGANS),
        ("ctr", pa.float32()),
        ("quality", pa.float32()),
        ("flags", pa.string()),
    ]
)
"""Columns: image id, frame in pixels, one RLE text per organ, cardiothoracic ratio, quality in [0, 1], flags."""

ROWS_PER_GROUP = 128
_IDS = ("image", "Image Index", "Image ID", "image_id", "dicom_id", "ImageID", "Path")
_NAMES = {
    "height": ("height", "Height"),
    "width": ("width", "Width"),
    "left_lung": ("left_lung", "Left Lung"),
    "right_lung": ("right_lung", "Right Lung"),
    "heart": ("heart", "Heart"),
}
_QUALITY = ("quality", "Dice RCA (Mean)")


class MaskTable:
    """Masks by image id, read when asked for: the file is never loaded as a whole.

    path: a Parquet file of MaskWriter, or a CSV file of CheXmask (Gaggion et al., Scientific Data 2024; columns
        Left Lung, Right Lung, Heart, Height, Width and the image's name, in NIH's table "Image Index").

    Attributes: path, ids. Called with an id it returns the masks, so it can be NIHChestXray's masks argument.
    Raises FileNotFoundError for a missing file, ValueError for one that lacks a column or names an image twice.
    """

    def __init__(self, path: StrPath) -> None:
        """Read the ids and where their rows are."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"mask table '{self.path}' does not exist.")
        comma = self.path.suffix.lower() == ".csv"
        self._rows: _ParquetRows | _CsvRows = _CsvRows(self.path) if comma else _ParquetRows(self.path)
        self.ids: list[str] = self._rows.ids
        self._place = {name: place for place, name in enumerate(self.ids)}
        if len(self._place) < len(self.ids):
            twice = next(name for place, name in enumerate(self.ids) if self._place[name] != place)
            raise ValueError(f"mask table '{self.path}' has the image '{twice}' twice.")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __contains__(self, image: object) -> bool:
        """Whether there are masks of an image."""
        return image in self._place

    def row(self, image: str) -> Mapping[str, Any]:
        """The row of an image: height, width, one RLE text per organ, quality (nan where the file has none).

        Raises KeyError for an image that the file does not have.
        """
        if image not in self._place:
            raise KeyError(f"mask table '{self.path}' has no image '{image}'.")
        return self._rows.row(self._place[image])

    def masks(self, image: str) -> npt.NDArray[np.bool_]:
        """Masks bool [3, H, W] in the image's own frame, in the order of ORGANS. Raises as row does."""
        row = self.row(image)
        return np.stack([rle.decode(row[organ], row["height"], row["width"]) for organ in ORGANS])

    __call__ = masks

    def coverage(self, image: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Soft masks float32 [3, h, w] at another resolution, straight from the runs. Raises as row does."""
        row = self.row(image)
        return np.stack([rle.coverage(row[organ], row["height"], row["width"], size) for organ in ORGANS])


def _column(path: Path, columns: Iterable[str], accepted: Iterable[str]) -> str:
    present = set(columns)
    for name in accepted:
        if name in present:
            return name
    raise ValueError(f"mask table '{path}' lacks a column {' or '.join(repr(name) for name in accepted)}.")


class _ParquetRows:
    def __init__(self, path: Path) -> None:
        try:
            self.file = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"mask table '{path}' is damaged or no Parquet file.") from error
        columns = self.file.schema_arrow.names
        self.names = {ours: _column(path, columns, names) for ours, names in _NAMES.items()}
        self.quality = next((name for name in _QUALITY if name in columns), None)
        self.ids = self.file.read([_column(path, columns, _IDS)]).column(0).to_pylist()
        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.ends = np.cumsum(sizes)
        wanted = [*self.names.values(), *([self.quality] if self.quality else [])]
        self.group = lru_cache(maxsize=4)(lambda index: self.file.read_row_group(index, wanted))

    def row(self, place: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.ends, place, side="right"))
        table = self.group(group)
        index = place - (int(self.ends[group - 1]) if group else 0)
        row = {ours: table.column(name)[index].as_py() for ours, name in self.names.items()}
        return row | {"quality": math.nan if self.quality is None else table.column(self.quality)[index].as_py()}


class _CsvRows:
    def __init__(self, path: Path) -> None:
        csv.field_size_limit(2**31 - 1)
        self.path = path
        self.ids: list[str] = []
        self.starts: list[int] = []
        with path.open("rb") as file:
            columns = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
            self.places = {ours: columns.index(_column(path, columns, names)) for ours, names in _NAMES.items()}
            self.quality = next((columns.index(name) for name in _QUALITY if name in columns), None)
            identity = columns.index(_column(path, columns, _IDS))
            while True:
                start = file.tell()
                line = file.readline()
                if not line.strip():
                    break
                self.ids.append(next(csv.reader([line.decode("utf-8")]))[identity])
                self.starts.append(start)

    def row(self, place: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self.starts[place])
            values = next(csv.reader([file.readline().decode("utf-8")]))
        row: dict[str, Any] = {ours: values[index] for ours, index in self.places.items()}
        row["height"], row["width"] = int(float(row["height"])), int(float(row["width"]))
        return row | {"quality": math.nan if self.quality is None else float(values[self.quality] or "nan")}


class MaskWriter:
    """Writes a mask table bit by bit, so that a run that is killed loses nothing it wrote.

    path: the Parquet file that finish leaves. Until then the rows lie in finished part files in the folder
    PATH.parts; a new writer goes on from them and from a file that is there already. Attribute: ids, what is there.
    """

    def __init__(self, path: StrPath) -> None:
        """Look for what an earlier run left."""
        self.path = Path(path)
        self.folder = self.path.with_name(self.path.name + ".parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ids: set[str] = set()
        for part in self._parts():
            self.ids.update(pq.read_table(part, columns=["image"]).column(0).to_pylist())
        self._waiting: list[Mapping[str, Any]] = []
        self._number = max((int(part.stem) for part in self.folder.glob("*.parquet")), default=0)

    def _parts(self) -> Iterator[Path]:
        if self.path.is_file():
            yield self.path
        yield from sorted(self.folder.glob("*.parquet"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row (the columns of SCHEMA); it is safe once flush has returned, which 128 rows bring about too."""
        self._waiting.append(row)
        self.ids.add(row["image"])
        if len(self._waiting) >= ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows to a part file of their own."""
        if not self._waiting:
            return
        self._number += 1
        partial = self.folder / f".{self._number:06d}.part"
        pq.write_table(pa.Table.from_pylist(list(self._waiting), schema=SCHEMA), partial, compression="zstd")
        partial.replace(self.folder / f"{self._number:06d}.parquet")
        self._waiting.clear()

    def finish(self) -> None:
        """Put everything into the one file; the parts go when it stands."""
        self.flush()
        partial = self.path.with_name(f".{self.path.name}.part")
        seen: set[str] = set()
        held = SCHEMA.empty_table()  # parts are as small as a batch: put together to groups
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for part in self._parts():
                file = pq.ParquetFile(part)
                names = file.read(["image"]).column(0).to_pylist()
                if seen.issuperset(names):  # a run was killed after the file was written, before its parts were removed
                    continue
                seen.update(names)
                for index in range(file.num_row_groups):
                    held = pa.concat_tables([held, file.read_row_group(index)])
                    while len(held) >= ROWS_PER_GROUP:
                        writer.write_table(held.slice(0, ROWS_PER_GROUP))
                        held = held.slice(ROWS_PER_GROUP)
            if len(held):
                writer.write_table(held)
        partial.replace(self.path)
        shutil.rmtree(self.folder)


def to_row(
    image: str, masks: npt.NDArray[np.bool_], ctr: float, quality: float, flags: Iterable[str]
) -> dict[str, Any]:
    """A row of SCHEMA from masks bool [3, H, W] in the order of ORGANS."""
    height, width = masks.shape[1:]
    texts = {organ: rle.encode(mask) for organ, mask in zip(ORGANS, masks, strict=True)}
    return {
        "image": image,
        "height": height,
        "width": width,
        **texts,
        "ctr": ctr,
        "quality": quality,
        "flags": "; ".join(flags),
    }
