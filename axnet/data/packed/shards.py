"""Shards: Arrow IPC files of one film per record batch, so that any film is one read of its own bytes."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from axnet.data.files import replacing
from axnet.data.findings import ORGANS
from axnet.data.packed import runs

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bits", pa.int32()),
        ("pixels", pa.binary()),
        *((organ, pa.binary()) for organ in ORGANS),
        ("crc", pa.uint32()),
    ]
)
"""Columns: id, frame in pixels, bits of a grey value (8, 16), grey values row by row (little endian), runs of each
organ (null without masks), and a CRC-32 of all of these."""

_FRAME = SCHEMA.names[:4]
_CONTENT = tuple(range(4, 4 + 1 + len(ORGANS)))
_CRC = len(SCHEMA) - 1

_OPEN = 512
"""Shards that one process holds open: half of the file handles that a system commonly allows."""

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Film:
    """pixels: uint8 or uint16 [H, W]; masks: bool [3, H, W] in the order of ORGANS, or None."""

    image: str
    pixels: npt.NDArray[Any]
    masks: Masks | None = None


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Film], None]]:
    """A new shard, which takes its name when it is whole; the body calls what it is given with each film."""
    with replacing(path) as partial, pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        yield lambda film: writer.write_batch(_batch(film))


def _batch(film: Film) -> pa.RecordBatch:
    height, width = film.pixels.shape
    content = {"pixels": np.ascontiguousarray(film.pixels, film.pixels.dtype.newbyteorder("<")).tobytes()}
    if film.masks is not None:
        content |= {organ: runs.encode(mask) for organ, mask in zip(ORGANS, film.masks, strict=True)}
    frame = {"image": film.image, "height": height, "width": width, "bits": 8 * film.pixels.itemsize}
    row = {**frame, **content, "crc": _checksum(frame, content.values())}
    return pa.RecordBatch.from_pylist([row], schema=SCHEMA)


class Shards:
    """The films of many shards by shard and row; each process opens its own files when it needs them.

    locate: gives a shard's name a local file, from wherever it is. Can be pickled, and read in a forked process.
    """

    def __init__(self, locate: Callable[[str], Path], names: list[str]) -> None:
        """Nothing is opened yet."""
        self.locate = locate
        self.names = names
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which belong to one process."""
        return {"locate": self.locate, "names": self.names, "_process": -1}

    def read(self, shard: int, row: int, *, masks: bool = True) -> Film:
        """A film. Raises ValueError that names shard and film where the file does not hold what was written."""
        name = self.names[shard]
        try:
            batch = self._opened(shard).get_batch(row)
            batch.validate(full=True)  # else a damaged offset reads the memory of others
            columns = {column: batch.column(place)[0] for place, column in enumerate(SCHEMA.names)}
            frame = {column: columns[column].as_py() for column in _FRAME}
            content = [columns[column].as_buffer() for column in ("pixels", *ORGANS) if columns[column].is_valid]
        except (pa.ArrowException, OSError, IndexError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"shard '{name}' is damaged or cannot be read, row {row} ({reason}).") from error
        if _checksum(frame, content) != columns["crc"].as_py():
            raise ValueError(f"shard '{name}' is damaged: film '{frame['image']}' is not what was written.")
        image, height, width, bits = frame.values()
        pixels = np.frombuffer(content[0], "<u1" if bits == 8 else "<u2").reshape(height, width)
        drawn = len(content) > 1 and masks
        planes = np.stack([runs.decode(data, height, width) for data in content[1:]]) if drawn else None
        return Film(image, pixels, planes)

    def content(self, shard: int, row: int, image: str, side: int) -> list[pa.Buffer] | None:
        """Grey values and runs of each organ of a film of side x side pixels of 8 bits, without looking at the rest.

        The checksum tells that it is this film. None for any other, and where something is wrong: `read` says what.
        """
        try:
            batch = self._opened(shard).get_batch(row)
            parts = [batch.column(place).buffers()[2] for place in _CONTENT]
            written = int.from_bytes(batch.column(_CRC).buffers()[1], "little")
        except (pa.ArrowException, OSError, IndexError, ValueError, KeyError):
            return None
        if any(part is None for part in parts) or parts[0].size != side * side:
            return None
        frame = dict(zip(_FRAME, (image, side, side, 8), strict=True))
        return parts if _checksum(frame, parts) == written else None

    def _opened(self, shard: int) -> pa.ipc.RecordBatchFileReader:
        if self._process != os.getpid():
            self._readers: OrderedDict[int, pa.ipc.RecordBatchFileReader] = OrderedDict()
            self._process = os.getpid()
        if shard in self._readers:
            self._readers.move_to_end(shard)
            return self._readers[shard]
        # not memory-mapped: a file that is cut off would end the process, and every page read would count as its own
        file = pa.OSFile(str(self.locate(self.names[shard])))
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
        if reader.schema != SCHEMA:
            raise ValueError(f"columns {reader.schema.names}, expected {SCHEMA.names}")
        self._readers[shard] = reader
        if len(self._readers) > _OPEN:
            self._readers.popitem(last=False)
        return reader


def _checksum(frame: Mapping[str, Any], content: Iterable[Any]) -> int:
    value = zlib.crc32(repr(list(frame.values())).encode())
    for part in content:
        value = zlib.crc32(part, value)
    return value
