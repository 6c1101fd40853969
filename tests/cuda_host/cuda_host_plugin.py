"""Pytest plugin for a run on the CUDA kernels compiled for the host (tests/ops/test_cuda_host.py).

AXNET_CUDA_HOST names the library, which stands in for axnet._C before axnet is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location("axnet._C", os.environ["AXNET_CUDA_HOST"])
assert spec is not None
assert spec.loader is not None
library = importlib.util.module_from_spec(spec)
sys.modules["axnet._C"] = library
spec.loader.exec_module(library)
