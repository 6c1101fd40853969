"""Runs a part of the tests in a Python process of its own, with other environment variables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MATRIX = tuple(
    str(ROOT / "tests" / "ops" / name)
    for name in ("test_attention.py", "test_average.py", "test_maxima.py", "test_pooling.py", "test_registration.py")
)
"""The files of the op matrix."""


def run_pytest(*arguments: str, timeout: int = 2400, **environment: str) -> int:
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


POISON = """
#include <malloc.h>
#include <string.h>
int posix_memalign(void **out, size_t alignment, size_t bytes) {
  *out = memalign(alignment, bytes);
  if (*out == 0) return 12;
  memset(*out, 0xff, bytes);
  return 0;
}
"""


def poisoned_memory(folder: Path) -> dict[str, str]:
    """Environment of a process in which all memory that nothing has written yet is NaN, or enormous.

    Every tensor on the CPU comes from posix_memalign, which a preloaded library fills with 0xff: NaN in all floating
    types, -1 in integers. MALLOC_PERTURB_ fills the rest of the heap with 0x7f: 3e38 in a float, 2e9 in an integer.
    Skips the test where that cannot be done.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("memory is poisoned by a C library that is preloaded on Linux")
    source, library = folder / "poison.c", folder / "poison.so"
    source.write_text(POISON)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return {"LD_PRELOAD": str(library), "MALLOC_PERTURB_": "128", "MALLOC_MMAP_THRESHOLD_": str(2**32)}
