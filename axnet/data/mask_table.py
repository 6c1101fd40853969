"""Organ masks of a whole data set in one columnar file: our predictions, and CheXmask's public tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from axnet.data import rle
from axnet.data.files import file_fingerprint, locked, remove_folder, replacing
from axnet.data.findings import ORGANS
from axnet.data.mask_rows import ROWS_PER_GROUP, open_rows
from axnet.paths import StrPath

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

_IDS = ("image", "Image Index", "Image ID", "image_id", "dicom_id", "ImageID", "Path")
_NAMES = {
    "height": ("height", "Height"),
    "width": ("width", "Width"),
    "left_lung": ("left_lung", "Left Lung"),
    "right_lung": ("right_lung", "Right Lung"),
    "heart": ("heart", "Heart"),
    "?quality": ("quality", "Dice RCA (Mean)"),
}
_LONGEST = 65535  # side of a film, in pixels
_MISSING = ("", "nan", "none", "null", "na", "n/a", "<na>")


class MaskTable:
    """Masks by image id, read when asked for: the file is never loaded as a whole.

    path: a Parquet file of MaskWriter, or a table of CheXmask (Gaggion et al., Scientific Data 2024; columns
        Left Lung, Right Lung, Heart, Height, Width and the image's name, in NIH's table "Image Index"): CSV, as it is
        or compressed (.gz, .bz2, .xz, .zst, .zip with one file), or Parquet. A compressed CSV file is unpacked once, to
        the system's folder for temporary files. An organ's cell that is empty is an empty mask.

    Attributes: path, ids. Called with an id it returns the masks, so it can be NIHChestXray's masks argument. It can be
    pickled, and read in forked and spawned workers.
    Raises FileNotFoundError for a missing file, ValueError for one that lacks a column, is cut off or names an image
    twice.
    """

    def __init__(self, path: StrPath) -> None:
        """Read the ids and where their rows are."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"mask table '{self.path}' does not exist.")
        self._rows = open_rows(self.path, _IDS, _NAMES)
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

    def fingerprint(self) -> str:
        """Names the file as it is now: its size and time of change."""
        return file_fingerprint([self.path])

    def row(self, image: str) -> Mapping[str, Any]:
        """The row of an image: height, width, one RLE text per organ, quality (nan where the file has none).

        Raises KeyError for an image that the file does not have, ValueError for a row without a size in pixels.
        """
        if image not in self._place:
            raise KeyError(f"mask table '{self.path}' has no image '{image}'.")
        found = self._rows.row(self._place[image])
        sides = {side: self._number(found[side], image, side) for side in ("height", "width")}
        for side, pixels in sides.items():
            if not (1 <= pixels <= _LONGEST and pixels.is_integer()):
                raise ValueError(
                    f"mask table '{self.path}' has {side} {pixels:g} for '{image}', expected 1 to {_LONGEST} pixels."
                )
        return {
            **{side: int(pixels) for side, pixels in sides.items()},
            **{organ: _text(found[organ]) for organ in ORGANS},
            "quality": self._number(found.get("quality"), image, "quality"),
        }

    def masks(self, image: str) -> npt.NDArray[np.bool_]:
        """Masks bool [3, H, W] in the image's own frame, in the order of ORGANS.

        Raises as row does, and ValueError for runs that are no mask of this size.
        """
        return self._organs(image, lambda text, height, width: rle.decode(text, height, width))

    __call__ = masks

    def coverage(self, image: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Soft masks float32 [3, h, w] at another resolution, straight from the runs. Raises as masks does."""
        return self._organs(image, lambda text, height, width: rle.coverage(text, height, width, size))

    def _organs(self, image: str, draw: Callable[[str, int, int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        row = self.row(image)
        planes = []
        for organ in ORGANS:
            try:
                planes.append(draw(row[organ], row["height"], row["width"]))
            except ValueError as error:
                raise ValueError(f"mask table '{self.path}', {organ} of '{image}': {error}") from error
        return np.stack(planes)

    def _number(self, value: Any, image: str, column: str) -> float:
        text = _text(value)
        try:
            return float(text or "nan")
        except ValueError:
            raise ValueError(
                f"mask table '{self.path}' has {column} {text!r} for '{image}', expected a number."
            ) from None


def _text(value: Any) -> str:
    """A cell as text, empty where the file has none: as CSV and as pandas write that."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in _MISSING else text


class MaskWriter:
    """Writes a mask table bit by bit, so that a run that is killed loses nothing it wrote.

    path: the Parquet file that finish leaves. Until then the rows lie in finished part files in the folder
    PATH.parts; a new writer goes on from them and from a file that is there already. Several processes may write to
    one path at a time: each finish takes up what is there, and of an image drawn twice the first row is kept.
    Attribute: ids, what was there at the start and what was added.
    """

    def __init__(self, path: StrPath) -> None:
        """Look for what an earlier run left."""
        self.path = Path(path)
        self.folder = self.path.with_name(self.path.name + ".parts")
        self._lock = self.folder / ".lock"
        self.ids: set[str] = set()
        with locked(self._lock):
            for part in self._parts():
                self.ids.update(_names_in(part))
        self._waiting: list[Mapping[str, Any]] = []

    def _parts(self) -> Iterator[Path]:
        if self.path.is_file():
            yield self.path
        yield from sorted(part for part in self.folder.glob("*.parquet") if part.stem.isdigit())

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
        with locked(self._lock):
            number = 1 + max((int(part.stem) for part in self._parts() if part != self.path), default=0)
            with replacing(self.folder / f"{number:06d}.parquet", self.folder / f".{number:06d}.part") as partial:
                pq.write_table(pa.Table.from_pylist(list(self._waiting), schema=SCHEMA), partial, compression="zstd")
        self._waiting.clear()

    def finish(self) -> None:
        """Put everything into the one file; the parts go when it stands."""
        self.flush()
        with locked(self._lock):
            parts = list(self._parts())
            if parts != [self.path]:
                self._merge(parts)
            for part in parts:
                if part != self.path:
                    part.unlink()
            for cut in self.folder.glob(".*.part"):  # of a run that was killed: writing takes place under the lock
                cut.unlink()
            remove_folder(self._lock)

    def _merge(self, parts: list[Path]) -> None:
        seen: set[str] = set()
        held = SCHEMA.empty_table()  # parts are as small as a batch: put together to groups
        with (
            replacing(self.path, self.path.with_name(f".{self.path.name}.part")) as partial,
            pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer,
        ):
            for part in parts:
                file = pq.ParquetFile(part)
                for index in range(file.num_row_groups):
                    group = file.read_row_group(index)
                    names = group.column("image").to_pylist()
                    new = [name not in seen and name not in names[:row] for row, name in enumerate(names)]
                    seen.update(names)
                    held = pa.concat_tables([held, group if all(new) else group.filter(pa.array(new))])
                    while len(held) >= ROWS_PER_GROUP:
                        writer.write_table(held.slice(0, ROWS_PER_GROUP))
                        held = held.slice(ROWS_PER_GROUP)
            if len(held):
                writer.write_table(held)


def _names_in(part: Path) -> list[str]:
    try:
        file = pq.ParquetFile(part)
        if file.schema_arrow.names != SCHEMA.names:
            raise ValueError(f"table '{part}' has columns {file.schema_arrow.names}, expected {SCHEMA.names}.")
        return list(file.read(["image"]).column(0).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"table '{part}' is damaged or no Parquet file, expected one of an earlier run.") from error


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
