"""One process at a time: a lock that a process which is killed leaves open."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made where it is missing; other processes wait meanwhile.

    The lock is a file .lock in the folder. It may be removed, with the folder, by the process that holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process removed the folder just now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:  # else it was removed while we waited, and guards nothing
                yield
                return
        finally:
            os.close(file)


def release(folder: Path) -> None:
    """Take the lock's file away, by the process that holds it; one that waits for it makes another."""
    (folder / _NAME).unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but its lock, which the caller holds."""
    if all(path.name == _NAME for path in folder.iterdir()):
        release(folder)
        try:
            folder.rmdir()
        except OSError:  # another process has just made its lock here
            return
