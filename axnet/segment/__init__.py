"""The anatomy: a small U-Net that draws left lung, right lung and heart on a frontal chest X-ray."""

from __future__ import annotations

from axnet.segment.anatomy import Anatomy, examine
from axnet.segment.evaluation import evaluate_segmenter
from axnet.segment.pretrained import load_pretrained
from axnet.segment.segmenter import PRESETS, Segmenter, SegmenterConfig
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
