"""The machine code that Triton makes for a GPU, executed without one, against the reference."""

from __future__ import annotations

import importlib.util
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing compiles"),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((2, 64, 16, 16), "bfloat16", "NCHW"),
        pytest.param((2, 64, 16, 16), "bfloat16", "channels_last", marks=pytest.mark.slow),
        pytest.param((2, 64, 16, 16), "float32", "NCHW", marks=pytest.mark.slow),
        pytest.param((2, 64, 16, 16), "float32", "channels_last", marks=pytest.mark.slow),
        # an image in strips
        pytest.param((1, 16, 33, 32), "bfloat16", "NCHW", marks=pytest.mark.slow),
        # rows that no vector fits, more channels than a tile
        pytest.param((2, 70, 7, 7), "bfloat16", "NCHW", marks=pytest.mark.slow),
    ],
)
def test_machine_code_agrees_with_the_reference(shape, dtype, layout):
    from benchmarks import triton_model

    triton_model.verify(Namespace(shape=shape, dtype=[dtype], layout=[layout]))
