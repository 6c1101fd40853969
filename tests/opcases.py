"""The op matrix: shapes, layouts, types and the one tolerance table; inputs are drawn from a seed.

AXNET_TEST_DEVICE (cpu) is where the tensors of a test lie, AXNET_TEST_BACKENDS (all that serve it) names the backends
under test, separated by commas.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import axnet
from axnet.types import MaskedPool

DEVICE = os.environ.get("AXNET_TEST_DEVICE", "cpu")
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
CHOSEN = os.environ.get("AXNET_TEST_BACKENDS")
BACKENDS = tuple(CHOSEN.split(",")) if CHOSEN else axnet.available_backends(torch.device(DEVICE).type)
FUSED = tuple(name for name in BACKENDS if name != "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed", "expanded")
# (N, C, H, W): one pixel, odd, even, wide, large, prime channels, empty batch, more channels than a block
SHAPES = ((2, 16, 1, 1), (3, 13, 7, 7), (2, 67, 14, 14), (2, 8, 17, 23), (2, 5, 32, 32), (0, 8, 7, 7), (1, 130, 3, 5))

# Largest error accepted, as a share of the largest value of the float64 reference: forward, gradients.
TOLERANCE = {
    torch.float64: (1e-11, 1e-10),
    torch.float32: (2e-5, 1e-4),
    torch.bfloat16: (1.5e-2, 4e-2),
    torch.float16: (2e-3, 6e-3),
}


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed + sum(shape))
    return (torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu").to(DEVICE) + shift).to(dtype)


def draw_mask(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed + sum(shape))
    return torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu").to(DEVICE, dtype)


Strided = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Any layout: the dimensions in the order of memory, and of each its step and what lies before it."""


def lay_out(x: Tensor, layout: str | Strided) -> Tensor:
    """The values of x [N, C, H, W] in another layout of memory."""
    n, c, h, w = x.shape
    if isinstance(layout, tuple):
        order, steps, before = layout
        places = [slice(b, b + step * size, step) for b, step, size in zip(before, steps, x.shape, strict=True)]
        sizes = [place.stop + 1 for place in places]
        big = x.new_full([sizes[d] for d in order], float("nan")).permute([order.index(d) for d in range(4)])
        big[tuple(places)] = x
        return big[tuple(places)]
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # more channels and images around
        big = x.new_full((n + 1, c + 3, h, w), float("nan"))
        big[1:, 2 : 2 + c] = x
        return big[1:, 2 : 2 + c]
    if layout == "sliced_channels_last":
        big = x.new_full((n + 1, c + 3, h, w), float("nan")).contiguous(memory_format=torch.channels_last)
        big[1:, 2 : 2 + c] = x
        return big[1:, 2 : 2 + c]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":  # one image seen n times
        return x[:1].expand(n, c, h, w) if n else x
    raise ValueError(layout)


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max().item()
    scale = max(expected.double().abs().max().item(), 1e-3)
    assert error <= tolerance * scale, f"{name}: error {error:.3g} of {scale:.3g}, tolerance {tolerance:.3g}"


def plain_gate(anatomies: int, channels: int, dtype: torch.dtype, seed: int = 7) -> Callable[[MaskedPool], Tensor]:
    """A gate without the two matrices: enough to send a gradient into every descriptor."""
    weight = draw((4, anatomies, channels), dtype, seed)

    def gate(pool: MaskedPool) -> Tensor:
        entries = (pool.avg[:, None], pool.max[:, None], pool.masked_max, pool.masked_avg)
        return torch.sigmoid(
            sum(torch.nn.functional.leaky_relu(e * weight[j].to(e.dtype), 0.2) for j, e in enumerate(entries))
        )

    return gate


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Reader of golden vectors: AXNET_DATA/../golden, else ../shared/golden beside the repository; skips if absent."""
    base = os.environ.get("AXNET_DATA")
    folder = Path(base).parent / "golden" if base else Path(__file__).resolve().parents[2] / "shared" / "golden"

    def read(name: str) -> dict[str, Tensor]:
        if not (folder / name).is_file():
            pytest.skip(f"golden vectors '{name}' are absent (set AXNET_DATA to the folder beside them)")
        with np.load(folder / name) as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}

    return read
