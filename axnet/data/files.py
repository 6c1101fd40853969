"""Files that several processes write: whole or not at all, and one process at a time where they share a state."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from axnet.paths import StrPath

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def replacing(path: StrPath, partial: Path | None = None) -> Iterator[Path]:
    """A new file beside path, which takes its name at the end; on an error it goes, and what was there stays.

    The folder is made where it is missing. partial: the name until then, None for one that no other process has.
    Raises OSError in one sentence where the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if partial is None:
        partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield partial
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            kept = "; the file that was there before is whole" if target.is_file() else ""
            failure = OSError(f"cannot write '{target}': {os.strerror(error.errno)}{kept}.")
            failure.errno = error.errno  # set apart, so that the text does not begin with "[Errno 28]"
            raise failure from error
        raise


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Holds a lock, a file in a folder that is made where it is missing; other processes wait meanwhile.

    A process that is killed holds nothing. The file may be removed, with its folder, by the process that holds it.
    """
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process removed the folder just now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:  # else it was removed while we waited, and guards nothing
                yield
                return
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a worker that was forked meanwhile holds a copy
            os.close(file)


def remove_folder(lock: Path) -> None:
    """Remove a lock that the caller holds, and its folder where that holds nothing else."""
    lock.unlink(missing_ok=True)
    try:
        lock.parent.rmdir()
    except OSError:  # not empty: another process has just made its lock here
        return


def file_fingerprint(paths: Iterable[StrPath]) -> str:
    """Names what files hold, by their names, sizes and times of change: reading them would take too long."""
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(path)
        digest.update(f"{os.path.basename(path)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]
