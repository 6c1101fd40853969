"""Batches on their way from a loader's process, through memory that all of its processes have.

torch hands each tensor over in new shared memory and through a connection of its own, which is most of the work of a
loader of packed films. Here the memory is made once, before the processes are, and used again.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SMALL = 1 << 16
"""Bytes up to which copies through the loader's pipe cost less than a connection."""
_MOST = 1 << 29
_ALIGNED = 64
_FREE, _HELD = 0, -1

Sent = tuple[npt.NDArray[Any], tuple[int, ...], tuple[int, ...], int]
_numbers = itertools.count()
_made: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Place:
    """Where a batch lies: number of the Slots, slot, how often that was claimed, and start, type and shape by name."""

    slots: int
    slot: int
    claim: int
    tensors: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]


class Slots:
    """Room in shared memory for batches of `size` bytes, count of them.

    A loader's process claims a slot for a batch; the process that made the slots holds it until the last tensor of the
    batch is gone. A slot that is claimed by a process that has ended is free.
    Raises RuntimeError where the system has not as much shared memory.
    """

    def __init__(self, count: int, size: int) -> None:
        """Make them in this process, which is the one that will receive."""
        self.number = next(_numbers)
        self.bytes = _shared(count * size).view(count, size)
        self._state = _shared(16 * count).view(torch.int64).view(2, count)  # who has it, and how often it was claimed
        self._state.zero_()
        self._lock = multiprocessing.Lock()
        _made[self.number] = self

    def put(self, batch: dict[str, Tensor]) -> Place | None:
        """Copy tensors into a slot; None where none is free, or they are larger."""
        tensors, start = {}, 0
        for name, value in batch.items():
            tensors[name] = (start, value.dtype, tuple(value.shape))
            start += room_of(value.nbytes)
        claimed = self._claimed() if start <= self.bytes.shape[1] else None
        if claimed is None:
            return None
        place = Place(self.number, *claimed, tensors)
        for name, view in _views(self.bytes[place.slot], tensors).items():
            view.copy_(batch[name])
        return place

    def _claimed(self) -> tuple[int, int] | None:
        owner, claims = self._state.numpy()
        if not self._lock.acquire(timeout=1):  # a process was killed that had it
            return None
        try:
            free = np.flatnonzero(owner == _FREE).tolist()
            if not free:
                free = [slot for slot, process in enumerate(owner.tolist()) if process > 0 and not _alive(process)]
            if not free:
                return None
            owner[free[0]] = os.getpid()
            claims[free[0]] += 1
            return free[0], int(claims[free[0]])
        finally:
            self._lock.release()

    def take(self, place: Place) -> dict[str, Tensor]:
        """The tensors of a batch; their slot is free when the last of them is gone."""
        owner, claims = self._state.numpy()
        if claims[place.slot] != place.claim:
            raise RuntimeError("a batch was overwritten before it arrived, since the process that cut it has ended.")
        owner[place.slot] = _HELD
        room = self.bytes[place.slot].numpy()
        # not at exit, when others may use the memory still
        weakref.finalize(room, self._freed, place.slot, os.getpid()).atexit = False
        return _views(torch.from_numpy(room), place.tensors)

    def _freed(self, slot: int, process: int) -> None:
        if os.getpid() == process:  # a forked process has copies of what this one holds
            self._state[0, slot] = _FREE


def most_shared() -> int:
    """Bytes that the slots of a loader may take: a quarter of what is free, since other tensors need some, too."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not every system shows it
        return _MOST
    return min(_MOST, free // 4)


def room_of(size: int) -> int:
    """Bytes of a slot that a tensor of so many takes."""
    return -(-size // _ALIGNED) * _ALIGNED


def _shared(size: int) -> Tensor:
    """New bytes in shared memory, as torch's own collate makes it."""
    block = torch.empty(0, dtype=torch.uint8)
    return block.new(block._typed_storage()._new_shared(size, device=block.device))


def _views(room: Tensor, tensors: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    found = {}
    for name, (start, dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        found[name] = room[start : start + size].view(dtype).view(shape)
    return found


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


class Batch(dict[str, Tensor]):
    """A batch that goes to another process: large tensors in a slot, small ones by value; there it is a plain dict.

    Without a slot that is free, large tensors go as torch sends them.
    """

    def __init__(self, tensors: dict[str, Tensor], slots: Slots | None = None) -> None:
        """Copy the large tensors into a slot."""
        super().__init__(tensors)
        large = {name: value for name, value in tensors.items() if value.untyped_storage().nbytes() > _SMALL}
        self.place = slots.put(large) if slots is not None and large else None

    def __reduce__(self) -> tuple[Callable[..., dict[str, Tensor]], tuple[Any, ...]]:
        """How it is sent."""
        placed = () if self.place is None else self.place.tensors
        return _received, ({name: None if name in placed else _sent(value) for name, value in self.items()}, self.place)


def _sent(value: Tensor) -> Tensor | Sent:
    storage = value.untyped_storage()
    if storage.nbytes() > _SMALL:
        return value
    whole = torch.empty(0, dtype=value.dtype).set_(storage)  # an expanded tensor is sent as what it repeats
    return whole.numpy(), tuple(value.shape), value.stride(), int(value.storage_offset())


def _received(sent: dict[str, Tensor | Sent | None], place: Place | None) -> dict[str, Tensor]:
    placed = {} if place is None else _made[place.slots].take(place)
    found: dict[str, Tensor] = {}
    for name, value in sent.items():
        if value is None:
            found[name] = placed[name]
        elif isinstance(value, Tensor):
            found[name] = value
        else:
            whole, shape, stride, offset = value
            found[name] = torch.from_numpy(np.asarray(whole)).as_strided(shape, stride, offset)
    return found
