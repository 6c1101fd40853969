"""What a forward pass asks of the host: calls that launch a kernel or copy, counted; casts of what kernels can read."""

from __future__ import annotations

import pytest
import torch
from opcases import DEVICE, FUSED, draw, draw_mask
from torch.utils._python_dispatch import TorchDispatchMode

from axnet.nn import PWAP, AnatomyAwareAttention

NOTHING_TO_DO = ("aten::empty", "aten::detach", "aten::lift_fresh", "aten::_unsafe_view")


class Calls(TorchDispatchMode):
    """Records the ops that launch or copy: all but views and new empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not name.startswith(NOTHING_TO_DO):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls_of(backend: str, dtype: torch.dtype, images: int, *, pooled: bool) -> list[str]:
    torch.manual_seed(0)
    attention = AnatomyAwareAttention(16, 2, backend=backend).eval().to(dtype)
    pooling = PWAP(16, 3, backend=backend).to(dtype)
    x, mask = draw((images, 16, 8, 8), dtype), draw_mask((images, 2, 8, 8), torch.float32)
    with torch.no_grad():
        attention.pool(x, mask, pooling)  # what is done once is not counted
        with Calls() as calls:
            if pooled:
                attention.pool(x, mask, pooling)
            else:
                pooling(attention(x, mask))
    return calls.names


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("images", [1, 8, 9, 70])
@pytest.mark.parametrize("pooled", [True, False])
def test_calls_of_inference(backend, images, pooled):
    single = calls_of(backend, torch.float32, images, pooled=pooled)
    half = calls_of(backend, torch.bfloat16, images, pooled=pooled)
    assert any("gate" in name for name in single), single
    assert len(single) <= 20, single
    if backend == "native" and DEVICE == "cpu":
        assert len(single) <= (8 if images <= 8 else 14), single
        assert len(half) <= len(single) + (0 if images <= 8 else 1), half  # a product of few rows reads any type
    assert len(half) <= 20, half


@pytest.mark.skipif("native" not in FUSED or DEVICE != "cpu", reason="of the CPU's kernels")
@pytest.mark.parametrize("images", [1, 8])
def test_nothing_is_cast_that_a_kernel_reads(images):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        named = calls_of("native", dtype, images, pooled=False)
        casts = [name for name in named if "copy" in name or name == "aten::to"]
        assert len(casts) <= (dtype == torch.float64), named  # the float32 mask of float64 features


@pytest.mark.skipif("native" not in FUSED or DEVICE != "cpu", reason="of the CPU's kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("images", [1, 3, 8])
@pytest.mark.parametrize("anatomies", [1, 2, 3])
def test_the_gate_in_one_op(dtype, images, anatomies):
    torch.manual_seed(0)
    module = AnatomyAwareAttention(24, anatomies, reduction=0.7, backend="native").eval().to(dtype)
    plain = AnatomyAwareAttention(24, anatomies, reduction=0.7, backend="reference").eval().double()
    plain.load_state_dict(module.state_dict())
    x, mask = draw((images, 24, 6, 7), dtype), draw_mask((images, anatomies, 6, 7), torch.float32)
    with torch.no_grad():
        actual, expected = module(x, mask), plain(x.double(), mask.double())
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float64: 1e-11}[dtype]
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()
    arguments = [torch.randn(images, 2 + 2 * anatomies, 24)]
    arguments += [t.detach() for t in (module.hidden_weight, module.hidden_bias, module.gate_weight, module.gate_bias)]
    torch.library.opcheck(torch.ops.axnet.attention_gate.default, arguments)
