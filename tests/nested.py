"""Runs a part of the tests in a Python process of its own, with other environment variables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MATRIX = tuple(
    str(ROOT / "tests" / "ops" / name)
    for name in ("test_attention.py", "test_average.py", "test_pooling.py", "test_registration.py")
)
"""The files of the op matrix."""


def run_pytest(*arguments: str, timeout: int = 1500, **environment: str) -> int:
    """Number of tests that passed; AssertionError with pytest's own words when one failed or none was there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert passed, done.stdout
    return int(passed[1])
