from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from axnet import ops
from axnet.nn import AnatomyAwareAttention
from axnet.nn.grouped import FEW, LEAST, SOME, grouped_linear

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


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 0, 5, 6),
        (1, 1, 1, 1),
        (3, LEAST - 1, 33, 17),
        (3, LEAST, 33, 17),
        (2, 5, 100, 16),
        (2, FEW - 1, 1024, 40),
        (1, FEW, 67, 130),
        (2, FEW + 1, 20, 9),
        (1, SOME, 16, 12),
        (1, SOME + 1, 7, 5),
    ],
)
def test_rows_and_types(backend, dtype, sizes):
    groups, rows, c_in, c_out = sizes
    generator = torch.Generator().manual_seed(1)
    shapes = (groups, rows, c_in + 3), (groups, c_out, c_in), (groups, c_out)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    x = x[..., 3:]  # rows at another step
    expected = torch.einsum("gni,goi->gno", x.double(), weight.double()) + bias.double()[:, None]
    with torch.no_grad():
        out = grouped_linear(x, weight, bias, backend)
    assert out.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound * scale)


@pytest.mark.skipif(ops.unavailable() is not None, reason="the native kernels are not built")
def test_native_kernel_serves_few_rows(inputs, monkeypatch):
    calls = []
    op = torch.ops.axnet.grouped_linear
    monkeypatch.setattr(torch.ops.axnet, "grouped_linear", lambda *a: calls.append(len(a[0][0])) or op(*a))
    x, weight, bias = inputs
    for rows, backend in ((LEAST - 1, None), (LEAST, None), (FEW, None), (FEW + 1, None), (FEW, "reference")):
        grouped_linear(x[:, :1].expand(-1, rows, -1), weight, bias, backend)
    attention = AnatomyAwareAttention(4, 2, backend="reference")
    attention(torch.rand(FEW, 4, 3, 3), torch.rand(FEW, 2, 3, 3))
    assert calls == [LEAST, FEW]


@pytest.mark.skipif(ops.unavailable() is not None, reason="the native kernels are not built")
def test_op_inside_torch(inputs):
    op, plain = torch.ops.axnet.grouped_linear.default, [t.detach() for t in inputs]
    torch.library.opcheck(op, plain)
    with pytest.raises(RuntimeError, match=rf"x has shape .*{FEW + 1}, 2\], expected .* at most {FEW} rows"):
        op(torch.rand(1, FEW + 1, 2), torch.rand(1, 3, 2), torch.rand(1, 3))
    with pytest.raises(RuntimeError, match="x is float16, expected the accumulation type of weight, float32"):
        op(torch.rand(1, 1, 2).half(), torch.rand(1, 3, 2).half(), torch.rand(1, 3).half())


@pytest.mark.parametrize("rows", [FEW, FEW + 1])
def test_batched_over_by_vmap(inputs, rows):
    _, weight, bias = (t.detach() for t in inputs)
    x = torch.randn(2, G, rows, C_IN, dtype=torch.float64)
    expected = torch.stack([grouped_linear(one, weight, bias) for one in x])
    torch.testing.assert_close(torch.func.vmap(grouped_linear, in_dims=(0, None, None))(x, weight, bias), expected)


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


def test_dynamic_rows_are_one_graph(inputs):
    _, weight, bias = (t.detach() for t in inputs)
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(grouped_linear, fullgraph=True, backend=graphs)
    for rows in (LEAST, FEW + 1, SOME + 1):
        x = torch.randn(G, rows, C_IN, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(compiled(x, weight, bias), grouped_linear(x, weight, bias))
    assert graphs.frame_count == 1
