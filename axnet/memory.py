"""Large tensors and the operating system: fresh memory costs as much as the kernels that fill it."""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for its next ones; whether that took effect (glibc only).

    By default glibc returns tensors of 32 MB and more to the system at once, and every new one is paid for again, page
    by page: in a training loop on a CPU that can take longer than the computation. The environment variables
    MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=2147483647 do the same from outside.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
