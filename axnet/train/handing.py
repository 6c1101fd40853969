"""Batches on their way from a loader's process: every tensor handed over by torch costs a connection of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_SMALL = 1 << 16
"""Bytes up to which copies through the loader's pipe cost less than a connection."""

Sent = tuple[npt.NDArray[Any], tuple[int, ...], tuple[int, ...], int]


def empty(*shapes: tuple[int, ...]) -> list[Tensor]:
    """New tensors uint8; in a loader's process in one piece of shared memory, so that they go over as one, uncopied."""
    sizes = [math.prod(shape) for shape in shapes]
    block = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        block = block.new_empty(sum(sizes))
    else:  # as torch's own collate makes it
        block = block.new(block._typed_storage()._new_shared(sum(sizes), device=block.device))
    return [part.view(shape) for part, shape in zip(block.split(sizes), shapes, strict=True)]


class Batch(dict[str, Tensor]):
    """A batch that goes to another process with its small tensors by value; there it is a plain dict."""

    def __reduce__(self) -> tuple[Callable[..., dict[str, Tensor]], tuple[dict[str, Tensor | Sent]]]:
        """How it is sent."""
        return _received, ({name: _sent(value) for name, value in self.items()},)


def _sent(value: Tensor) -> Tensor | Sent:
    storage = value.untyped_storage()
    if storage.nbytes() > _SMALL:
        return value
    whole = torch.empty(0, dtype=value.dtype).set_(storage)  # an expanded tensor is sent as what it repeats
    return whole.numpy(), tuple(value.shape), value.stride(), int(value.storage_offset())


def _received(sent: dict[str, Tensor | Sent]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in sent.items():
        if isinstance(value, Tensor):
            found[name] = value
        else:
            whole, shape, stride, offset = value
            found[name] = torch.from_numpy(np.asarray(whole)).as_strided(shape, stride, offset)
    return found
