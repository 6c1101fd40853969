"""8-bit arrays kept on disk: named by what they are made of, written once and whole, opened without write access."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axnet.data.files import locked, replacing

Bytes = npt.NDArray[np.uint8]
Shapes = Mapping[str, tuple[int, ...]]


def kept(folder: Path, key: str | None, shapes: Shapes, batches: Iterable[Mapping[str, Bytes]]) -> dict[str, Bytes]:
    """Arrays of these names and shapes, read from folder, or written there first from batches along the first axis.

    key: names the content; None for content that nothing names, which is written each time, under its own checksum.
    Of several processes that ask for one key, one writes and the others wait. The arrays are memory-mapped: what is
    changed in them does not reach the files.
    Raises ValueError for a file that is damaged, OSError where one cannot be written; then nothing is left of it.
    """
    if key is None:
        return _mapped(folder, _written_by_checksum(folder, shapes, batches), shapes)
    lock = folder / f".{key}.lock"
    with locked(lock):
        if not all(_file(folder, name, key).is_file() for name in shapes):
            _write(folder, key, shapes, batches)
        lock.unlink(missing_ok=True)
    return _mapped(folder, key, shapes)


def _file(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key}.npy"


def _write(folder: Path, key: str, shapes: Shapes, batches: Iterable[Mapping[str, Bytes]]) -> str:
    """Write the files and return the checksum of what they hold."""
    for name in shapes:  # what a run that was killed left; the lock is ours
        for cut in folder.glob(f".{_file(folder, name, key).name}.*"):
            cut.unlink()
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = {}
        for name, shape in shapes.items():
            partial = stack.enter_context(replacing(_file(folder, name, key)))
            files[name] = stack.enter_context(partial.open("wb"))
            header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for batch in batches:
            for name, file in files.items():
                content = np.ascontiguousarray(batch[name]).data
                file.write(content)  # not into a memory map, whose owner a full disk kills
                digest.update(content)
    return digest.hexdigest()[:24]


def _written_by_checksum(folder: Path, shapes: Shapes, batches: Iterable[Mapping[str, Bytes]]) -> str:
    token = secrets.token_hex(12)
    key = _write(folder, token, shapes, batches)
    for name in shapes:
        _file(folder, name, token).replace(_file(folder, name, key))
    return key


def _mapped(folder: Path, key: str, shapes: Shapes) -> dict[str, Bytes]:
    arrays = {}
    for name, shape in shapes.items():
        file = _file(folder, name, key)
        try:
            array = np.load(file, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"cache file '{file}' is damaged ({error}); remove it to have it made again.") from error
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(
                f"cache file '{file}' holds {array.dtype} {array.shape}, expected uint8 {shape}; remove it to have it "
                "made again."
            )
        arrays[name] = array
    return arrays


def key_of(parts: Sequence[Any]) -> str:
    """A name for content that these plain values determine."""
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:24]
