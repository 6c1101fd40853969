"""Memory of this process, where the launched kernels' buffers lie, and what was asked of it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]


@dataclass
class Traffic:
    """Bytes between DRAM and the caches."""

    read: int = 0
    again: int = 0  # read or written when the caches had dropped them
    written: int = 0
    short: int = 0  # pieces that were read without the rest of their line


@dataclass
class Memory:
    """What the sampled blocks asked of memory, by kind."""

    sectors: int = 0  # 32 bytes, of requests that left for the caches
    requests: int = 0  # of warps
    traffic: dict[int, Traffic] = field(default_factory=dict)  # with DRAM, by buffer
    far: int = 0  # 32 bytes that the second-level cache had
    shared_wavefronts: int = 0
    shared_requests: int = 0


def writable_memory() -> list[tuple[int, int]]:
    """First address and the one after the last of this process's own memory, neighbours joined."""
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            ends, rights, *rest = line.split()
            if rights.startswith("rw") and (len(rest) < 4 or rest[3] == "[heap]"):
                low, high = (int(word, 16) for word in ends.split("-"))
                if found and found[-1][1] == low:
                    low = found.pop()[0]
                found.append((low, high))
    return found


class HostMemory:
    """Reads and writes of this process by address, refused outside of what is mapped."""

    def __init__(self) -> None:
        self.regions = writable_memory()
        self.arrays: dict[tuple[int, int], Lanes] = {}

    def views(self, at: Lanes, size: int, width: int) -> list[tuple[Any, Lanes, Lanes]]:
        """Regions that the addresses lie in: which of them, their indices, and the region as numbers of `width`."""
        found = []
        left = np.ones(at.size, bool)
        for low, high in self.regions:
            mine = left & (at >= low) & (at + size <= high)
            if not mine.any():
                continue
            key = (low, width)
            if key not in self.arrays:
                kind = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}[width]
                self.arrays[key] = np.ctypeslib.as_array((kind * ((high - low) // width)).from_address(low))
            found.append((mine, (at[mine] - low) // width, self.arrays[key]))
            left &= ~mine
            if not left.any():
                return found
        raise RuntimeError(f"the kernel reaches for {int(at[left][0]):#x}, which is no memory of this process")
