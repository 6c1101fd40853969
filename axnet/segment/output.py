"""Where predicted anatomy goes: one columnar file, or a folder of PNG masks. Both can be cut off and gone on with."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from PIL import Image

from axnet.data.files import locked, replacing
from axnet.data.findings import ORGANS
from axnet.data.mask_table import MaskWriter, to_row
from axnet.paths import StrPath
from axnet.segment.anatomy import Anatomy

_COLUMNS = ["image", "ctr", "quality", "flags"]


class Sink(Protocol):
    """Takes the anatomy of images by name."""

    def __contains__(self, name: str) -> bool:
        """Whether an earlier run wrote this image."""
        ...

    def add(self, name: str, anatomy: Anatomy) -> None:
        """Take one more."""
        ...

    def flush(self) -> None:
        """What was added is safe now."""
        ...

    def finish(self) -> None:
        """Everything is there."""
        ...


def open_sink(out: StrPath, names: Iterable[str] = ()) -> Sink:
    """A table for a name that ends in .parquet, else a folder.

    names: images to come. Raises ValueError where two of them would get the same file.
    """
    if Path(out).suffix == ".parquet":
        return TableSink(out)
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(mask_name(name), name)
        if other != name:
            raise ValueError(
                f"images holds '{other}' and '{name}', whose masks would both be '{mask_name(name)}': give a table "
                "(.parquet) as --out."
            )
    return PngFolder(out)


def mask_name(name: str) -> str:
    """The file of an image's mask: named as the image where that is PNG, else with .png behind its whole name."""
    return name if name.lower().endswith(".png") else f"{name}.png"


class TableSink:
    """One Parquet file (axnet.data.MaskTable reads it), in parts until it is finished."""

    def __init__(self, out: StrPath) -> None:
        """Go on with what is there."""
        self.writer = MaskWriter(out)

    def __contains__(self, name: str) -> bool:
        """Whether an earlier run wrote this image."""
        return name in self.writer.ids

    def add(self, name: str, anatomy: Anatomy) -> None:
        """Take one more."""
        self.writer.add(to_row(name, anatomy.masks, anatomy.ctr, anatomy.quality, anatomy.flags))

    def flush(self) -> None:
        """Write what was added to a part of its own."""
        self.writer.flush()

    def finish(self) -> None:
        """Write the one file."""
        self.writer.finish()


class PngFolder:
    """OUT/ORGAN/IMAGE.png (1 bit) and OUT/anatomy.csv (image, ctr, quality, flags).

    Several processes may write to one folder at a time; of an image drawn twice the later row is kept.
    """

    def __init__(self, out: StrPath) -> None:
        """Go on with what is there; ValueError for a foreign anatomy.csv."""
        self.out = Path(out)
        self.table = self.out / "anatomy.csv"
        self.lock = self.out / ".lock"
        self.waiting: list[list[str]] = []
        with locked(self.lock):
            rows = {name: row for name, row in _rows(self.table).items() if self._drawn(name)}
            for organ in ORGANS:
                (self.out / organ).mkdir(exist_ok=True)
            _write_rows(self.table, rows.values())
        self.done = set(rows)

    def _file(self, organ: str, name: str) -> Path:
        return self.out / organ / mask_name(name)

    def _drawn(self, name: str) -> bool:
        return all(self._file(organ, name).is_file() for organ in ORGANS)

    def __contains__(self, name: str) -> bool:
        """Whether an earlier run wrote this image."""
        return name in self.done

    def add(self, name: str, anatomy: Anatomy) -> None:
        """Take one more."""
        for organ, mask in zip(ORGANS, anatomy.masks, strict=True):
            with replacing(self._file(organ, name)) as partial:
                Image.fromarray(mask).save(partial, format="PNG", bits=1, optimize=True)
        ctr = "" if anatomy.ctr != anatomy.ctr else f"{anatomy.ctr:.4f}"
        self.waiting.append([name, ctr, f"{anatomy.quality:.3f}", "; ".join(anatomy.flags)])

    def flush(self) -> None:
        """Rows reach the disk after their masks."""
        if not self.waiting:
            return
        with locked(self.lock):
            if not _ends_with_a_row(self.table):
                _write_rows(self.table, _rows(self.table).values())
            with self.table.open("a", newline="", encoding="utf-8") as opened:
                csv.writer(opened).writerows(self.waiting)
        self.waiting.clear()

    def finish(self) -> None:
        """One row for each image, whoever drew it."""
        self.flush()
        with locked(self.lock):
            _write_rows(self.table, _rows(self.table).values())
            self.lock.unlink(missing_ok=True)


def _ends_with_a_row(table: Path) -> bool:
    """Whether a table is there and whole: another run may have been killed while it wrote."""
    if not table.is_file():
        return False
    with table.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read() == b"\n"


def _rows(table: Path) -> dict[str, list[str]]:
    """The complete rows of a table of ours, by image; a run that was killed may have left half a row at the end."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as opened:
        text = opened.read()
    header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")) if "\n" in text else [_COLUMNS]
    if header != _COLUMNS:
        raise ValueError(f"table '{table}' has columns {header}, expected {_COLUMNS}: give another --out.")
    return {row[0]: row for row in rows if len(row) == len(_COLUMNS)}


def _write_rows(table: Path, rows: Iterable[list[str]]) -> None:
    with replacing(table) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([_COLUMNS, *rows])
