"""Pytest plugin for a run on the CUDA kernels compiled for the host (tests/ops/test_cuda_host.py).

AXNET_CUDA_HOST names the library, which stands in for axnet._C before axnet is imported; of the tests one in
AXNET_CUDA_HOST_SHARE runs, drawn by a checksum of its name.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib

import pytest

spec = importlib.util.spec_from_file_location("axnet._C", os.environ["AXNET_CUDA_HOST"])
assert spec is not None
assert spec.loader is not None
library = importlib.util.module_from_spec(spec)
sys.modules["axnet._C"] = library
spec.loader.exec_module(library)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = int(os.environ.get("AXNET_CUDA_HOST_SHARE", "1"))
    chosen = [item for item in items if zlib.crc32(item.nodeid.encode()) % share == 0]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
