"""Sums over many pixels: their error does not grow with the map, in either layout."""

from __future__ import annotations

import pytest
import torch
from opcases import FUSED, lay_out

from axnet import functional as AF
from axnet.ops import calls, fused_ops


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sums_of_a_large_map(backend, layout):
    side = 512 if backend == "native" else 64  # Triton is interpreted
    torch.manual_seed(0)
    x = torch.rand(1, 6, side, side) + 0.5
    mask = torch.rand(1, 2, side, side)
    x, wide = lay_out(x, layout), x.double()
    found = calls.masked_moments(fused_ops(backend), x, mask, second=True, positions=False, blocks=0)
    pool = AF._named(found.descriptors, 2)
    masked = mask.double()[:, :, None] * wide[:, None]
    for actual, expected in ((pool.avg, wide.mean((2, 3))), (pool.masked_avg, masked.mean((3, 4)))):
        assert ((actual.double() - expected) / expected).abs().max() < 5e-7
    shift, s2 = found.moments[:, 0].double(), found.moments[:, 2].double()
    expected = (wide - shift[..., None, None]).square().sum((2, 3))
    assert ((s2 - expected) / expected).abs().max() < 5e-7


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_sums_of_the_backward_pass(backend, layout, shift):
    side = 512 if backend == "native" else 64
    torch.manual_seed(0)
    x = (torch.randn(1, 6, side, side) + shift).float()
    mask, d = torch.rand(1, 2, side, side), torch.rand(1, 6, side, side)

    def gradients(dtype, backend):
        w, b = torch.ones(6, dtype=dtype, requires_grad=True), torch.zeros(6, dtype=dtype, requires_grad=True)
        v = lay_out(x.to(dtype), layout).detach().requires_grad_()
        z = AF.anatomy_attention(
            v, mask.to(dtype), lambda pool: torch.full_like(pool.masked_avg, 0.5), w, b, training=True, backend=backend
        )
        (z * d.to(dtype)).sum().backward()
        return b.grad, w.grad / v.numel() ** 0.5

    for actual, expected in zip(gradients(torch.float32, backend), gradients(torch.float64, "reference"), strict=True):
        assert ((actual.double() - expected) / (expected.abs() + 1)).abs().max() < (2e-6 if shift == 0 else 1e-3)
