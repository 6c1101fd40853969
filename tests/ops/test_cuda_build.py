"""nvcc's own report on the CUDA kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nested import ROOT
from torch.utils import cpp_extension

pytestmark = pytest.mark.slow
# wherever torch finds a CUDA toolkit, which the report's own search must find as well
HOME = Path(cpp_extension.CUDA_HOME or os.environ.get("CUDA_HOME", "/usr/local/cuda"))
needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None and not (HOME / "bin" / "nvcc").is_file(), reason="nvcc is not installed"
)
REGISTERS, THREADS = 65536, 256  # of a multiprocessor, of a block


@needs_nvcc
def test_no_kernel_spills():
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_resources.py"), "--architecture", "80", "90"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"sm_80", "sm_90"}
    for kernels in found.values():
        assert len(kernels) >= 150
        for name, used in kernels.items():
            assert used["spills"] == 0, f"{name}: {used}"
            assert used["stack"] == 0, f"{name}: {used}"
            assert used["registers"] * THREADS <= REGISTERS, f"{name}: {used}"
            if "<float, 2" in name or "<BFloat16, 2" in name:  # lungs and heart: two blocks side by side
                assert used["registers"] * THREADS * 2 <= REGISTERS, f"{name}: {used}"
