"""The suite itself: what it must not leave out without a word."""

from __future__ import annotations

import re

import pytest
from nested import MATRIX, ROOT, run_pytest
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


def test_the_recipe_for_an_op_names_every_file_it_touches():
    recipe = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding an op")[1].split("\n## ")[0]
    named = re.findall(r"`((?:csrc|axnet|kernels|tests)[\w/.]*)`", recipe)
    assert all((ROOT / path).exists() for path in named), named
    ops = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "ops.cpp").read_text())
    assert {"masked_moments", "gate_norm", "pwap", "pwap_backward", "grouped_linear"} <= set(ops)
    words = re.compile(rf"\b({'|'.join(ops)})\b")
    layers = ("csrc", "kernels", "axnet/ops", "axnet/reference", "axnet/functional.py", "axnet/checks.py", "tests/ops")
    for layer in layers:
        start = ROOT / layer
        for file in [start] if start.is_file() else start.rglob("*"):
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and words.search(file.read_text()):
                path = file.relative_to(ROOT).as_posix()
                assert any(path == name or path.startswith(f"{name}/") for name in named), path
