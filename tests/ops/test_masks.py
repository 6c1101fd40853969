"""What masks may hold: resized ones, 8-bit ones of 0 and 1, NaN."""

from __future__ import annotations

import warnings

import pytest
import torch
from opcases import BACKENDS, DEVICE, FUSED, draw, lay_out
from torch.nn import functional as F

from axnet import checks, reference
from axnet import functional as AF
from axnet.ops import calls, fused_ops

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="values are looked at on the CPU")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [(7, 7), (224, 224), (37, 53)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area", "antialias"])
def test_resized_masks_of_ones_are_accepted(backend, dtype, side, mode):
    options = {"mode": mode} if mode != "antialias" else {"mode": "bilinear", "antialias": True}
    ones = torch.ones(1, 1, 301, 257, dtype=dtype)  # torch's antialias knows no half types on a CPU
    mask = F.interpolate(ones.float() if mode == "antialias" else ones, size=side, **options).to(dtype)
    x = draw((1, 3, *side), torch.float32)
    tolerance = 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    for own in (mask, mask.float()):
        pool = AF.masked_pool(x, own, backend=backend)
        torch.testing.assert_close(pool.masked_avg[:, 0], pool.avg, rtol=tolerance, atol=tolerance)
    AF.masked_pool(draw((1, 3, 11, 13), torch.float32), mask, backend=backend)  # resized once more


@on_cpu
@pytest.mark.parametrize("value", [1.02, 255.0, -0.001])
def test_more_than_a_rounding_step_is_refused(value):
    mask = torch.ones(1, 1, 4, 4)
    mask[0, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"mask has values from .*, expected values in \[0, 1\]"):
        AF.masked_pool(torch.zeros(1, 3, 4, 4), mask)


@pytest.fixture
def unsaid(monkeypatch):
    monkeypatch.setattr(checks, "_said", False)
    monkeypatch.setattr(checks, "_looked_at", set())


def test_a_uint8_mask_of_ones_is_remarked_on_once(unsaid):
    x = draw((2, 3, 4, 4), torch.float32)
    ones = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"mask is uint8 and its largest value is 1, which counts as 1/255"):
        pool = AF.masked_pool(x, ones)
    torch.testing.assert_close(pool.masked_avg[:, 0], pool.avg / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AF.masked_pool(x, ones)


@pytest.mark.parametrize("largest", [0, 2, 255])
def test_other_uint8_masks_are_not_remarked_on(unsaid, largest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AF.masked_pool(draw((1, 3, 4, 4), torch.float32), torch.full((1, 1, 4, 4), largest, dtype=torch.uint8))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 20, 6, 7), (2, 5, 24, 25)])
@pytest.mark.parametrize("second", [True, False])
def test_nan_in_a_mask_shows(backend, layout, shape, second):
    x, mask = lay_out(draw(shape, torch.float32), layout), torch.full((shape[0], 2, *shape[2:]), 0.5)
    mask[0, 1, 3, 2] = float("nan")
    found = calls.masked_moments(fused_ops(backend), x, mask, second=second, positions=True, blocks=0)
    expected = reference.masked_pool(x, mask)
    actual = AF._named(found.descriptors, 2)
    for name, a, e in zip(actual._fields, actual, expected, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
    assert (found.argmax[0, 2] == 3 * shape[3] + 2).all()
