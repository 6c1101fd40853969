"""Timings that users can repeat: A3 and PWAP against eager PyTorch, torch.compile and the peers' published form."""

from __future__ import annotations

from axnet.bench.cases import FORMS, LAYOUTS, SHAPES, TASKS, Case, forms_of
from axnet.bench.measure import Record, copy_bandwidth, measure, run_all, summary

__all__ = [
    "FORMS",
    "LAYOUTS",
    "SHAPES",
    "TASKS",
    "Case",
    "Record",
    "copy_bandwidth",
    "forms_of",
    "measure",
    "run_all",
    "summary",
]
