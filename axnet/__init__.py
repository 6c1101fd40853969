"""axnet: Anatomy-XNet for chest X-rays, with A3 and PWAP as fused kernels.

`pip install axnet` alone (torch and numpy) gives axnet.nn and axnet.functional, the layers that drop into any model;
the extra [train] brings the network, the data readers, training, evaluation and the command line.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axnet import data, functional, metrics, models, nn, reference, report, segment, train
    from axnet.backends import available_backends, use_backend
    from axnet.dropin import accelerate, restore
    from axnet.environment import info

__version__ = "0.1.0"

if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parents[1]))  # run from its sources: there, kernels/ lies beside axnet/

# what needs torch is imported on first use, so that `axnet --help` answers at once
_FUNCTIONS = {
    "accelerate": "dropin",
    "available_backends": "backends",
    "info": "environment",
    "restore": "dropin",
    "use_backend": "backends",
}
_SUBPACKAGES = ("data", "functional", "kernels", "metrics", "models", "nn", "reference", "report", "segment", "train")

__all__ = [
    "__version__",
    "accelerate",
    "available_backends",
    "data",
    "functional",
    "info",
    "metrics",
    "models",
    "nn",
    "reference",
    "report",
    "restore",
    "segment",
    "train",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"axnet.{_FUNCTIONS[name]}"), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"axnet.{name}")
    raise AttributeError(f"module 'axnet' has no attribute {name!r}")


if "torch" in sys.modules:  # torch.ops.axnet is there for exported programs; else axnet.ops registers it
    importlib.import_module("axnet.ops")
