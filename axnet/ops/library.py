"""Loading of the compiled library and of the Triton ops, and the sentences that say why they are not there."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch


def _built_for() -> str:
    try:
        return str(importlib.import_module("axnet._buildinfo").torch_version)
    except ImportError:
        return "an unknown torch"


def _load() -> str | None:
    try:
        importlib.import_module("axnet._C")
    except ModuleNotFoundError:
        package = Path(__file__).resolve().parents[1]
        if (package.parent / "setup.py").is_file():
            return (
                f"axnet was imported from its source folder '{package.parent}', which holds no compiled library; start "
                "Python in another folder, or compile in place with 'python setup.py build_ext --inplace'"
            )
        return "the compiled library is missing; install axnet again with 'pip install .'"
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"the compiled library was built for torch {_built_for()}, you have torch {torch.__version__}: "
            f"{str(error).splitlines()[0]}; reinstall with 'pip install --force-reinstall --no-deps .'"
        )
    return None


def _serves(op: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"axnet::{op}", device.upper())


def _without_cuda() -> str | None:
    if _serves("pwap", "cuda"):
        return None
    state = str(importlib.import_module("axnet._buildinfo").cuda_kernels)
    return f"axnet was built without CUDA kernels: {state.removeprefix('no (').removesuffix(')')}"


_REASON = _load()
_CUDA_REASON = _without_cuda() if _REASON is None else None
_GATED_PWAP = tuple(device for device in ("cpu", "cuda") if _REASON is None and _serves("gated_pwap", device))
has_attention_gate = _REASON is None and _serves("attention_gate", "cpu")
"""Whether the compiled library has A3's gate as one op for a CPU; the CUDA kernels built for the host come without."""

_MATRIX_GATE = tuple(device for device in ("cpu", "cuda") if _REASON is None and _serves("matrix_gate", device))


def has_matrix_gate(device: str) -> bool:
    """Whether the compiled library has A3's gate for 16-bit weights as one op on a device of this type."""
    return device in _MATRIX_GATE


def has_gated_pwap(backend: str, device: str) -> bool:
    """Whether a backend pools the attended features on a device of this type without writing them."""
    return backend == "triton" or (backend == "native" and device in _GATED_PWAP)


def unavailable(device: str = "cpu") -> str | None:
    """None when the compiled ops serve tensors on a device of this type, else one sentence that says why not."""
    if _REASON is not None or device == "cpu":
        return _REASON
    if device == "cuda":
        return _CUDA_REASON
    return f"the native kernels run on cpu and cuda, the tensors are on {device}"


_TRITON_FOUND = importlib.util.find_spec("triton") is not None  # found, not imported: that takes its time


def triton_unavailable(device: str) -> str | None:
    """None when Triton kernels serve tensors on a device of this type, else one sentence that says why they do not."""
    if not _TRITON_FOUND:
        return "Triton is not installed; install it with 'pip install triton'"
    if device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return "Triton kernels run on a GPU; TRITON_INTERPRET=1 lets them serve CPU tensors, slowly"


def fused_ops(backend: str) -> Any:
    """Namespace of the ops of a fused backend, "native" or "triton"; the latter is imported when first asked for."""
    if backend == "triton":
        import axnet.kernels.ops  # noqa: F401

        return torch.ops.axnet_triton
    return torch.ops.axnet


def refuse_double_backward(namespace: str, op: str, backend: str) -> None:
    """Give the backward op a derivative that raises one clear sentence."""

    def backward(ctx: object, *grads: object) -> None:
        raise RuntimeError(
            f"double backward is not supported by the {backend} backend ({namespace}::{op}); "
            "use backend='reference' where second derivatives are needed."
        )

    torch.library.register_autograd(f"{namespace}::{op}", backward)
