"""axnet: Anatomy-XNet for chest X-rays, with A3 and PWAP as fused kernels.

`pip install axnet` alone (torch and numpy) gives axnet.nn and axnet.functional, the layers that drop into any model;
the extra [train] brings the network, the data readers, training, evaluation and the command line.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axnet.backends import available_backends, use_backend
from axnet.environment import __version__, info

if TYPE_CHECKING:
    from axnet import data, functional, metrics, models, nn, reference, report, segment, train

if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parents[1]))  # run from its sources: there, kernels/ lies beside axnet/

_SUBPACKAGES = ("data", "functional", "kernels", "metrics", "models", "nn", "reference", "report", "segment", "train")

__all__ = [
    "__version__",
    "available_backends",
    "data",
    "functional",
    "info",
    "metrics",
    "models",
    "nn",
    "reference",
    "report",
    "segment",
    "train",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"axnet.{name}")
    raise AttributeError(f"module 'axnet' has no attribute {name!r}")
