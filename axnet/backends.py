"""Which implementation runs: the compiled kernels, Triton, or plain PyTorch."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad

from axnet import _choice, ops
from axnet.ops.layouts import channels_last

BACKENDS = ("native", "triton", "reference")
_ACCEPTED = ("auto", *BACKENDS)
FEW_MAPS = 4  # the kernels multiply more maps than these on the matrix units

_choice_here: ContextVar[str | None] = ContextVar("axnet_backend", default=None)
_last_choice: str | None = None  # of any thread: with it as an argument, a new choice compiles anew
_warned = False


def _chosen(_: str | None) -> str | None:
    return _choice_here.get()


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work: only PyTorch's own ops serve it."""
    return maybe_current_level() is not None or forward_ad._current_level >= 0


# torch.compile cannot look into these; it takes their values of the time when it compiles, and guards the arguments.
_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


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


class _Choice(AbstractContextManager[None]):
    """Takes a choice back when its block ends."""

    def __init__(self, before: str | None) -> None:
        self.before = before

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _choose(self.before)


def _choose(name: str | None) -> None:
    global _last_choice
    _choice_here.set(name)
    _last_choice = name


def use_backend(name: str) -> AbstractContextManager[None]:
    """Choose the backend of every call that names none: "auto", "native", "triton" or "reference".

    The choice holds from now on in this thread (or asynchronous task: it is a context variable) and no other; as a
    context manager it ends with the block. It goes before the environment variable AXNET_BACKEND, which holds for the
    process. Raises ValueError for an unknown name, RuntimeError when the backend cannot serve any device here.
    """
    name = _checked(name, "use_backend's name")
    if name != "auto":
        reasons = [why_not(name, device) for device in ("cpu", "cuda")]
        if all(reasons):
            raise RuntimeError(f"backend {name!r} cannot be used: {reasons[0]}.")
    before = _choice_here.get()
    _choose(name)
    return _Choice(before)


def _first(x: Tensor, work: str) -> str:
    """The backend that the record of a GPU names for this work on x; needs nothing but x's type, strides and size."""
    layout, dtype = "channels_last" if channels_last(x) else "NCHW", {2: "bfloat16", 4: "float32"}.get(x.element_size())
    name, least = _choice.FASTER.get((work, layout, dtype or ""), (BACKENDS[0], 0))
    # a compiled model launches without Python's time, and must not be compiled again for a size
    return name if torch.compiler.is_compiling() or x.numel() >= least else BACKENDS[0]


def resolve(backend: str | None, where: Tensor | torch.device, work: str | None = None) -> str:
    """The backend that serves a call: the argument, else use_backend, else AXNET_BACKEND, else auto.

    Inside torch.func's transforms and forward-mode differentiation, auto is the reference.

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
    else:
        chosen = _chosen(_last_choice)
        name = chosen if chosen is not None else _checked(os.environ.get("AXNET_BACKEND") or "auto", "AXNET_BACKEND")
    if transformed():
        if name in ("auto", "reference"):
            return "reference"
        raise RuntimeError(
            f"backend {name!r} cannot be used: torch.func and forward-mode derivatives need 'reference' or 'auto'."
        )
    if name != "auto":
        reason = why_not(name, device.type)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot be used: {reason}.")
        return name
    if device.type == "meta":
        return "reference"  # shapes alone
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
