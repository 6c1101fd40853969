"""The machine code that Triton makes for a GPU, executed without one: results, and instructions an element."""

from __future__ import annotations

import importlib.util
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing compiles"),
]

# Executed thread instructions an element at most, bfloat16 and float32 (counted with Triton 3.9, and some to spare).
BUDGETS = {
    "moments": (26, 26),
    "descriptors": (18, 18),
    "gate + norm": (14, 14),
    "backward sums": (21, 18),
    "backward input": (34, 32),
    "pwap, 1": (17, 24),
    "pwap backward, 1": (22, 32),
}


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
# strips of an image and whole rows; rows that no vector fits, more channels than a tile
@pytest.mark.parametrize("shape", [(1, 16, 33, 32), (2, 70, 7, 7)])
def test_machine_code_agrees_with_the_reference(shape, dtype, layout):
    from benchmarks import triton_model

    triton_model.verify(Namespace(shape=shape, dtype=[dtype], layout=[layout]))


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_instructions_an_element(dtype, layout):
    from benchmarks import cuda_model, triton_model

    rows = triton_model.measure(Namespace(shape=(8, 1024, 48, 48), dtype=[dtype], layout=[layout], name="", blocks=4))
    for (name, _, _), (instructions, _) in cuda_model.passes(rows).items():
        if name in BUDGETS:
            most = BUDGETS[name][dtype == "float32"]
            assert instructions <= most, f"{name}: {instructions} instructions an element, at most {most}"
