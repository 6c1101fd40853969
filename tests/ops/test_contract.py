"""The ops' contract in Python is that of csrc/: the rows of rows.h, the order of arguments and results of ops.cpp."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from opcases import FUSED

from axnet.ops import calls, fused_ops, rows

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "rows.h"
RESULTS = {
    "masked_moments": calls.Moments,
    "masked_moments_backward": calls.MomentsGrad,
    "gate_norm": calls.GateNorm,
    "gate_norm_backward": calls.GateNormGrad,
    "pwap": calls.Pooled,
    "pwap_backward": calls.PooledGrad,
}


def header_functions() -> dict[str, object]:
    """rows.h's functions of one count, made Python."""
    found = re.findall(r"constexpr int (\w+)\(int (\w)\) \{ return (.+); \}", HEADER.read_text())
    space: dict[str, object] = {}
    for name, argument, expression in found:
        exec(f"def {name}({argument}): return {expression.replace('/', '//')}", space)
    return {name: space[name] for name, _, _ in found}


def test_rows_are_those_of_the_header():
    theirs = header_functions()
    ours = {name: f for name, f in vars(rows).items() if inspect.isfunction(f)}
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 8
    for name, f in ours.items():
        assert [f(a) for a in range(1, 17)] == [theirs[name](a) for a in range(1, 17)], name


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", RESULTS)
def test_calls_pass_every_argument_to_its_own_place(backend, name):
    ops = fused_ops(backend)
    schema = getattr(ops, name).default._schema
    # the links are results of the forward op alone; a gradient is named by what it is the gradient of
    assert [r.name.removeprefix("grad_") for r in schema.returns] in (
        list(RESULTS[name]._fields),
        [""] * len(schema.returns),
    )
    names = [argument.name for argument in schema.arguments]
    call = getattr(calls, name)
    assert list(inspect.signature(call).parameters) == ["ops", *names]

    class Recorder:
        """An op that returns its arguments by name."""

        def __getattr__(self, _):
            return self

        def __call__(self, *arguments):
            recorded.update(zip(names, arguments, strict=True))
            return [torch.empty(0)] * len(schema.returns)

    recorded: dict[str, object] = {}
    result = call(Recorder(), **{argument: argument for argument in names})
    assert recorded == {argument: argument for argument in names}
    assert isinstance(result, RESULTS[name])
