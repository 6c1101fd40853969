"""Which implementation runs: the compiled kernels, Triton, or plain PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from axnet import ops

BACKENDS = ("native", "triton", "reference")
_ACCEPTED = ("auto", *BACKENDS)

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


def resolve(backend: str | None, device: torch.device) -> str:
    """The backend that serves a call: the argument, else use_backend, else AXNET_BACKEND, else auto.

    Raises ValueError for an unknown name, RuntimeError for a named backend that cannot serve the device.
    """
    global _warned
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
    for name in BACKENDS:
        if why_not(name, device.type) is None:
            break
    if name == "reference" and not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(f"axnet runs without its native kernels: {why_not('native', device.type)}.", stacklevel=4)
    return name
