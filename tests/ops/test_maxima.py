"""Where the maxima of X and of m_a X stand, and what does not depend on the batch."""

from __future__ import annotations

import pytest
import torch
from opcases import FUSED, draw, draw_mask, lay_out

from axnet import functional as AF
from axnet.ops import calls, fused_ops


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_ties_give_the_gradient_to_the_first_position(backend, layout):
    x = lay_out(torch.zeros(1, 17, 5, 7, dtype=torch.float64), layout).requires_grad_()
    AF.masked_pool(x, torch.ones(1, 1, 5, 7), backend=backend).max.sum().backward()
    expected = torch.zeros_like(x)
    expected[..., 0, 0] = 1
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 24, 7, 7),
        (1, 16, 13, 11),
        (1, 16, 50, 38),
        (1, 1024, 6, 6),
        (1, 520, 16, 16),
        (1, 128, 8, 16),
        (1, 128, 16, 16),
        (1, 256, 7, 7),
        (1, 256, 4, 5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_places_of_maxima_are_the_first_ones(backend, layout, shape, dtype):
    """Of products of bfloat16, which float32 holds exactly: among equal ones, under masks of zeros, of X alone."""
    numbers = draw(shape, torch.float32)
    masks = draw_mask((1, 2, *shape[2:]), torch.float32)
    ramp = torch.linspace(0, 1, shape[2] * shape[3]).view(shape[2:]).expand_as(masks)
    pairs = {
        "any": (numbers, masks),
        "few, some": ((4 * numbers).round() / 4, masks * (masks > 0.7)),
        "few, ramp": ((4 * numbers).round() / 4, ramp),
        "relu, binary": (numbers.relu(), masks.round()),
        "below, some": (-numbers.abs() - 0.01, masks * (masks > 0.7)),
        "relu, none": (numbers.relu(), 0 * masks),
    }
    for kind, (values, mask) in pairs.items():
        x, mask = lay_out(values.bfloat16().to(dtype), layout), mask.bfloat16().float()
        found = calls.masked_moments(fused_ops(backend), x, mask, second=True, positions=True, blocks=0)
        flat, over = x.float().flatten(2)[:, None], mask.flatten(2)[:, :, None]
        products = torch.cat([flat, over * flat], 1)  # [1, 1 + A, C, H W]
        first = (products == products.amax(-1, keepdim=True)).int().argmax(-1)
        assert torch.equal(found.argmax.view_as(first), first.to(found.argmax.dtype)), kind


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(67, 512, 8, 16), (67, 512, 16, 16), (133, 512, 7, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_image_among_many_has_the_bits_that_it_has_alone(backend, training, shape, dtype):
    # of many images a block of a GPU's takes more channels, one group of rows after the other
    x, mask = draw(shape, torch.float32).to(dtype), draw_mask((shape[0], 2, *shape[2:]), torch.float32)
    x[-1, 100], x[-1, 301, 3, 4] = x[-1, 100] + 100, float("nan")  # rows that are gone over again

    def moments(images):
        ops = fused_ops(backend)
        return calls.masked_moments(ops, x[images], mask[images], second=training, positions=training, blocks=0)

    many, alone = moments(slice(None)), moments(slice(-1, None))
    for a, b in zip(many, alone, strict=True):
        if a.ndim > 1 and a.numel():
            assert torch.equal(a[-1:].nan_to_num(7), b.nan_to_num(7))
