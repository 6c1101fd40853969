"""Loading of the compiled library, and the sentence that says why it is not there."""

from __future__ import annotations

import importlib
from pathlib import Path

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


_REASON = _load()


def unavailable() -> str | None:
    """None when the compiled ops are loaded, else one sentence that says why they are not."""
    return _REASON


def refuse_double_backward(op: str) -> None:
    """Give the backward op a derivative that raises one clear sentence."""

    def backward(ctx: object, *grads: object) -> None:
        raise RuntimeError(
            f"double backward is not supported by the native backend (axnet::{op}); "
            "use backend='reference' where second derivatives are needed."
        )

    torch.library.register_autograd(f"axnet::{op}", backward)
