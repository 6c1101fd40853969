"""The rows of a mask table, one at a time: Parquet, CSV as it is, and CSV in a compressed file."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import shutil
import tempfile
import weakref
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

csv.field_size_limit(max(csv.field_size_limit(), 2**27))  # landmarks and runs of a film are longer than 128 KiB

ROWS_PER_GROUP = 128
_MACOS = "__MACOSX/"  # what macOS adds to every zip file
_CODEC_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


class Rows(Protocol):
    """ids, one per row, and the named values of a row. Can be pickled, and read in a forked process."""

    ids: list[str]

    def row(self, place: int) -> Mapping[str, Any]:
        """The values by our names, as the file has them."""
        ...


class Columns:
    """Which of a file's columns are ours: identity (the image's name) and, by our names, the others.

    wanted: our names to those that are accepted; one that starts with "?" may be absent.
    Raises ValueError that names the file and the column that is missing.
    """

    def __init__(self, path: Path, present: Sequence[str], identity: Iterable[str], wanted: Mapping[str, Any]) -> None:
        """Look for them."""
        self.identity = self._find(path, present, identity)
        self.by_name: dict[str, str] = {}
        for ours, names in wanted.items():
            if not ours.startswith("?"):
                self.by_name[ours] = self._find(path, present, names)
            elif any(name in present for name in names):
                self.by_name[ours[1:]] = self._find(path, present, names)

    @staticmethod
    def _find(path: Path, present: Sequence[str], accepted: Iterable[str]) -> str:
        for name in accepted:
            if name in present:
                if present.count(name) > 1:
                    raise ValueError(f"mask table '{path}' has {present.count(name)} columns {name!r}, expected one.")
                return name
        if not any(present):
            raise ValueError(f"mask table '{path}' has nothing in its first line, expected the names of its columns.")
        raise ValueError(
            f"mask table '{path}' lacks a column {' or '.join(repr(name) for name in accepted)}; it has "
            f"{', '.join(repr(name) for name in present[:12])}{', ...' if len(present) > 12 else ''}."
        )


def open_rows(path: Path, identity: Iterable[str], wanted: Mapping[str, Any]) -> Rows:
    """The rows of a table, whose kind is told from the file's first bytes. Raises ValueError as the classes do."""
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return ParquetRows(path, identity, wanted)
    if any(head.startswith(magic) for magic in _OPENERS):
        return PackedRows(path, identity, wanted)
    return CsvRows(path, identity, wanted)


class ParquetRows:
    """Rows of a Parquet file; four of its groups are held at most."""

    def __init__(self, path: Path, identity: Iterable[str], wanted: Mapping[str, Any]) -> None:
        """Read the names of the images."""
        self.path = path
        try:
            file = pq.ParquetFile(path)
            self.columns = Columns(path, file.schema_arrow.names, identity, wanted)
            names = file.read([self.columns.identity], use_threads=False).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"mask table '{path}' is damaged or no Parquet file.") from error
        self.ids = [_name(name, path, row) for row, name in enumerate(names, start=1)]
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        self.ends = np.cumsum(sizes)
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which belongs to one process."""
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_group", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The file is opened again when a row is asked for."""
        vars(self).update(state)
        self._process = -1

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"mask table '{self.path}' cannot be read any more ({error}).") from error

    def row(self, place: int) -> Mapping[str, Any]:
        """The values by our names."""
        if self._process != os.getpid():
            self._file = self._open()
            self._group = lru_cache(maxsize=4)(self._read)
            self._process = os.getpid()
        group = int(np.searchsorted(self.ends, place, side="right"))
        table = self._group(group)
        index = place - (int(self.ends[group - 1]) if group else 0)
        return {ours: table.column(name)[index].as_py() for ours, name in self.columns.by_name.items()}

    def _read(self, group: int) -> pa.Table:
        # a thread pool of Arrow's does not survive a fork
        return self._file.read_row_group(group, list(self.columns.by_name.values()), use_threads=False)


class CsvRows:
    """Rows of a CSV file, found again by their place in it."""

    def __init__(self, path: Path, identity: Iterable[str], wanted: Mapping[str, Any]) -> None:
        """Read the file once, keeping names and places."""
        self.path = path
        self.ids: list[str] = []
        self.starts, self.ends = array("q"), array("q")
        with path.open("rb") as file:
            self.format = CsvFormat(path, file, identity, wanted)
            for name, _, start, end in self.format.records(file):
                self.ids.append(name)
                self.starts.append(start)
                self.ends.append(end)

    def row(self, place: int) -> Mapping[str, Any]:
        """The values by our names."""
        with self.path.open("rb") as file:
            file.seek(self.starts[place])
            text = file.read(self.ends[place] - self.starts[place]).decode("utf-8")
        return self.format.values(next(self.format.reader(io.StringIO(text, newline=""))))


class PackedRows(ParquetRows):
    """Rows of a compressed CSV file, which cannot be read from the middle: the columns needed go to a temporary file.

    It lies in the system's folder for temporary files, and is removed with this object.
    """

    def __init__(self, path: Path, identity: Iterable[str], wanted: Mapping[str, Any]) -> None:
        """Unpack the file once."""
        self.packed, self.accepted = path, (tuple(identity), dict(wanted))
        self._unpack()
        super().__init__(self.path, *self.accepted)

    def _unpack(self) -> None:
        folder = tempfile.mkdtemp(prefix="axnet-masks-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self.path = Path(folder) / "masks.parquet"
        with _reading(self.packed) as file:
            form = CsvFormat(self.packed, file, *self.accepted)
            names = [form.columns.identity, *form.columns.by_name.values()]
            schema = pa.schema([(name, pa.large_string()) for name in names])
            with pq.ParquetWriter(self.path, schema, compression="zstd") as writer:
                held: list[dict[str, str]] = []
                for name, cells, _, _ in form.records(file):
                    values = form.values(cells)
                    texts = {theirs: values[ours] for ours, theirs in form.columns.by_name.items()}
                    held.append({**texts, form.columns.identity: name})
                    if len(held) == ROWS_PER_GROUP:
                        writer.write_table(pa.Table.from_pylist(held, schema=schema))
                        held = []
                if held:
                    writer.write_table(pa.Table.from_pylist(held, schema=schema))

    def _open(self) -> pq.ParquetFile:
        if not self.path.is_file():  # pickled, and its first owner is gone
            self._unpack()
        return super()._open()


class CsvFormat:
    """How a CSV file is written: its delimiter and where our columns are.

    file: at its beginning; it is read past the header. Raises ValueError for a missing column.
    """

    def __init__(self, path: Path, file: IO[bytes], identity: Iterable[str], wanted: Mapping[str, Any]) -> None:
        """Read the header."""
        self.path = path
        self.place = 0
        header = next(self._lines(file), "").lstrip("\ufeff")
        self.delimiter = max(",;\t", key=header.count)
        try:
            names = [name.strip() for name in next(self.reader([header]), [])]
        except csv.Error as error:
            raise ValueError(f"mask table '{path}' has a first line that cannot be read ({error}).") from error
        self.columns = Columns(path, names, identity, wanted)
        self.width = len(names)
        self.shift = 0
        self.identity = names.index(self.columns.identity)
        self.places = {ours: names.index(theirs) for ours, theirs in self.columns.by_name.items()}

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Rows of cells, without the blanks after a delimiter."""
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=True)

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        """Lines of text; place counts the bytes that they took."""
        for line in file:
            self.place += len(line)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"mask table '{self.path}' is not text in UTF-8 ({error}).") from error

    def records(self, file: IO[bytes]) -> Iterator[tuple[str, list[str], int, int]]:
        """Name, cells, first and end byte of every row that is not blank; a value in quotes may go over many lines.

        Raises ValueError that names the file and the row when one has too few or too many values or no name.
        """
        reader = self.reader(self._lines(file))
        number, start = 0, self.place
        while True:
            number += 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise self._error(number, f"cannot be read ({error})") from error
            if cells is None:
                return
            end, begun = self.place, start
            start = end
            if not any(cell.strip() for cell in cells):
                number -= 1
                continue
            if number == 1 and len(cells) == self.width + 1:
                self._widen(cells)
            if len(cells) != self.width:
                raise self._error(number, f"has {len(cells)} values, expected {self.width}")
            yield _name(cells[self.identity + self.shift], self.path, number), cells, begun, end

    def _widen(self, cells: Sequence[str]) -> None:
        """Take a first row with one value more than the header for one with a comma at its end or a row number."""
        if not cells[-1].strip():
            self.width += 1
        elif cells[0].strip() in ("0", "1"):
            self.width, self.shift = self.width + 1, 1

    def values(self, cells: Sequence[str]) -> dict[str, str]:
        """The values of a row by our names."""
        return {ours: cells[place + self.shift] for ours, place in self.places.items()}

    def _error(self, number: int, what: str) -> ValueError:
        return ValueError(f"mask table '{self.path}': row {number} {what}; is the file cut off?")


def _name(value: Any, path: Path, row: int) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or value != value else str(value)
    if not text.strip():
        raise ValueError(f"mask table '{path}': row {row} has no image name; is the file cut off?")
    return text.strip()


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that ends leaves the folder to its parent
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a compressed file; ValueError for one that is damaged."""
    with path.open("rb") as file:
        head = file.read(6)
    opener = next(opener for magic, opener in _OPENERS.items() if head.startswith(magic))
    try:
        with opener(path) as stream:
            yield stream
    except _CODEC_ERRORS as error:
        if getattr(error, "errno", None) is not None:  # the disk's, not the codec's
            raise
        raise ValueError(f"mask table '{path}' is cut off or damaged ({error}).") from error


def _zipped(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith(_MACOS) and not Path(name).name.startswith(".")
    ]
    if len(names) != 1:
        raise ValueError(f"mask table '{path}' is a zip file of {len(names)} files, expected one CSV file in it.")
    try:
        return archive.open(names[0])
    except RuntimeError as error:  # a password
        raise ValueError(f"mask table '{path}' cannot be unpacked ({error}).") from error


def _zstandard(path: Path) -> IO[bytes]:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"PK\x03\x04": _zipped,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
