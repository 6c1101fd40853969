from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from axnet.nn.grouped import grouped_linear

G, N, C_IN, C_OUT = 3, 4, 5, 6


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = (G, N, C_IN), (G, C_OUT, C_IN), (G, C_OUT)
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


def test_every_group_is_a_linear_layer(inputs):
    x, weight, bias = inputs
    expected = torch.stack([F.linear(*group) for group in zip(x, weight, bias, strict=True)])
    torch.testing.assert_close(grouped_linear(x, weight, bias), expected)


def test_first_and_second_derivatives(inputs):
    assert torch.autograd.gradcheck(grouped_linear, inputs)
    assert torch.autograd.gradgradcheck(grouped_linear, inputs)


def test_gradients_have_the_weights_layout(inputs):
    grouped_linear(*inputs).sum().backward()
    weight = inputs[1]
    assert weight.grad.stride() == weight.stride()


def test_autocast_computes_in_its_type_and_returns_gradients_in_the_weights(inputs):
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), grouped_linear(x, weight, bias), rtol=2e-2, atol=5e-2)


def test_compiles_without_a_break(inputs):
    compiled = torch.compile(grouped_linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), grouped_linear(*inputs))
