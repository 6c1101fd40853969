"""The segmenter that comes with axnet."""

from __future__ import annotations

from pathlib import Path

from axnet.segment.segmenter import Segmenter

WEIGHTS = Path(__file__).parent / "weights" / "frontal.safetensors"
"""Trained by benchmarks/train_segmenter.py; the model card stands beside it (frontal.md)."""


def load_pretrained() -> Segmenter:
    """The segmenter for frontal films of adults that comes with axnet; needs no network. Not a medical device.

    Raises FileNotFoundError when the installation lacks the weights.
    """
    return Segmenter.load(WEIGHTS)
