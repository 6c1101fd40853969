"""The suite itself: what it must not leave out without a word."""

from __future__ import annotations

import re

import pytest
from nested import MATRIX, run_pytest
from opcases import BACKENDS, CHOSEN, DEVICE

from axnet import backends


def test_the_compiled_kernels_are_under_test():
    if CHOSEN is None:
        assert "native" in BACKENDS, backends.why_not("native", DEVICE)


def test_a_matrix_without_backends_fails():
    # "reference" alone is what remains where the compiled library does not load; test_average compares it, too
    files = [file for file in MATRIX if not file.endswith("test_average.py")]
    with pytest.raises(AssertionError) as failed:
        run_pytest(*files, "--collect-only", AXNET_TEST_BACKENDS="reference")
    assert len(re.findall(r"^Empty parameter set in 'test_\w+'", str(failed.value), re.MULTILINE)) == len(files)
