"""The op matrix in memory that is NaN until it is written: a sum that starts anywhere else than at 0 shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from nested import MATRIX, poisoned_memory, run_pytest

CONTROL = "import torch; t = [torch.empty(n) for n in (1, 100, 10**6)]; print([v.isnan().all().item() for v in t])"


def test_the_memory_is_poisoned(tmp_path):
    # the proof that the test below can fail
    environment = {**os.environ, **poisoned_memory(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CONTROL], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[True, True, True]"


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "baseline"])
def test_matrix(tmp_path, isa):
    passed = run_pytest(
        *MATRIX,
        *("-k", "native and not gradcheck and not compile and not export and not bits"),
        **poisoned_memory(tmp_path),
        AXNET_TEST_BACKENDS="native",
        AXNET_TEST_EVERY="3" if isa else "1",
        AXNET_CPU_ISA=isa,
    )
    assert passed >= (200 if isa else 600)
