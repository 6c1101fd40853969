"""Which implementation runs: the compiled kernels, Triton, or plain PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from axnet import _choice, ops
from axnet.ops.layouts import channels_last

BACKENDS = ("native", "triton", "reference")
_ACCEPTED = ("auto", *BACKENDS)
FEW_MAPS = 4  # the kernels multiply more maps than these on the matrix units

_chosen: str | None = None
_warned = False


def _checked(name: object, source: str) -> str:
    if name not in _ACCEPTED:
        raise ValueError(f"{source} is {name!r}, expected one of {_ACCEPTED}.")
    return str(name)


def why_not(backend: str, device: str = "cpu") -> str | None:
    """None where the backend serves tensors on the device ("cpu", "cuda"), else the reason why it does not."""
    if backend == "reference":
        return None
    if backend == "native":
        return ops.unavailable(device)
    return ops.triton_unavailable(device)


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """Names of the backends that serve tensors on the device; `axnet.info()` has the reasons for the others."""
    return tuple(name for name in BACKENDS if why_not(name, device) is None)


def use_backend(name: str) -> AbstractContextManager[None]:
    """Choose the backend of every call that names none: "auto", "native", "triton" or "reference".

    The choice holds from now on for the process; as a context manager it ends with the block. It goes before the
    environment variable AXNET_BACKEND. Raises ValueError for an unknown name, RuntimeError when the backend cannot
    serve any device here.
    """
    global _chosen
    name = _checked(name, "use_backend's name")
    if name != "auto":
        reasons = [why_not(name, device) for device in ("cpu", "cuda")]
        if all(reasons):
            raise RuntimeError(f"backend {name!r} cannot be used: {reasons[0]}.")
    before, _chosen = _chosen, name

    @contextmanager
    def restore() -> Iterator[None]:
        global _chosen
        try:
            yield
        finally:
            _chosen = before

    return restore()


def _first(x: Tensor, work: str) -> str:
    """The backend that the record of a GPU names for this work on x; needs nothing but x's type, strides and size."""
    layout, dtype = "channels_last" if channels_last(x) else "NCHW", {2: "bfloat16", 4: "float32"}.get(x.element_size())
    name, least = _choice.FASTER.get((work, layout, dtype or ""), (BACKENDS[0], 0))
    # a compiled model launches without Python's time, and must not be compiled again for a size
    return name if torch.compiler.is_compiling() or x.numel() >= least else BACKENDS[0]


def resolve(backend: str | None, where: Tensor | torch.device, work: str | None = None) -> str:
    """The backend that serves a call: the argument, else use_backend, else AXNET_BACKEND, else auto.

    Args:
        backend: the call's own argument.
        where: the features that the call is given, or their device.
        work: what is done with the features, a kind of work of axnet._choice: on a GPU auto takes the backend that a
            record has as the faster one for it.

    Raises ValueError for an unknown name, RuntimeError for a named backend that cannot serve the device.
    """
    global _warned
    device = where.device if isinstance(where, Tensor) else where
    if backend is not None:
        name = _checked(backend, "backend")
    elif _chosen is not None:
        name = _chosen
    else:
        name = _checked(os.environ.get("AXNET_BACKEND") or "auto", "AXNET_BACKEND")
    if name != "auto":
        reason = why_not(name, device.type)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot be used: {reason}.")
        return name
    if device.type == "cuda" and work is not None and isinstance(where, Tensor):
        name = _first(where, work)
        if why_not(name, device.type) is None:
            return name
    for name in BACKENDS:
        if why_not(name, device.type) is None:
            break
    if name == "reference" and not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(f"axnet runs without its native kernels: {why_not('native', device.type)}.", stacklevel=4)
    return name


def pooling_work(maps: int, training: bool) -> str:
    """The kind of work of PWAP with so many maps."""
    return f"pwap, {'few' if maps <= FEW_MAPS else 'many'} maps{', training' if training else ''}"
