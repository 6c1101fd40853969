"""The anatomy: a small U-Net that draws left lung, right lung and heart on a frontal chest X-ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axnet.segment.anatomy import Anatomy, examine
from axnet.segment.evaluation import evaluate_segmenter
from axnet.segment.pretrained import load_pretrained
from axnet.segment.segmenter import PRESETS, Segmenter, SegmenterConfig

if TYPE_CHECKING:
    from axnet.segment.training import fit_segmenter

__all__ = [
    "PRESETS",
    "Anatomy",
    "Segmenter",
    "SegmenterConfig",
    "evaluate_segmenter",
    "examine",
    "fit_segmenter",
    "load_pretrained",
]


def __getattr__(name: str) -> Any:
    if name == "fit_segmenter":  # with it comes Lightning, which prediction does not need
        from axnet.segment.training import fit_segmenter

        return fit_segmenter
    raise AttributeError(f"module 'axnet.segment' has no attribute {name!r}")
