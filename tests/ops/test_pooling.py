from __future__ import annotations

import pytest
import torch
from opcases import DTYPES, FUSED, LAYOUTS, SHAPES, TOLERANCE, assert_close, draw, lay_out

from axnet import functional as AF

NAMES = ("pooled", "prob", "grad_x", "grad_weight", "grad_bias")


def run(backend, dtype, shape, maps, *, layout="contiguous", bias=True, scale=1.0, prob_grad=True):
    n, c, h, w = shape
    compute = torch.float64 if backend == "reference" else dtype
    x = lay_out(draw(shape, dtype).to(compute), layout).detach().requires_grad_()
    weight = (draw((maps, c), dtype, 2) * scale / c**0.5).to(dtype).to(compute).requires_grad_()
    b = draw((maps,), dtype, 3).to(compute).requires_grad_() if bias else None
    pooled, prob = AF.pwap(x, weight, b, backend=backend)
    loss = (pooled * draw((n, maps, c), dtype, 4).to(compute)).sum()
    if prob_grad:
        loss = loss + (prob * draw((n, maps, h, w), dtype, 5).to(compute)).sum()
    loss.backward()
    return pooled.detach(), prob.detach(), x.grad, weight.grad, b.grad if bias else torch.zeros(0)


def compare(backend, dtype, shape, maps, **options):
    expected = run("reference", dtype, shape, maps, **options)
    actual = run(backend, dtype, shape, maps, **options)
    forward, backward = TOLERANCE[dtype]
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_close(name, a, e, backward if name.startswith("grad") else forward)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maps", [1, 14])
def test_matrix(backend, dtype, layout, shape, maps):
    compare(backend, dtype, shape, maps, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("maps", [1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 17, 31, 64])
def test_numbers_of_maps(backend, layout, maps):
    compare(backend, torch.float32, (2, 37, 19, 17), maps, layout=layout)
    compare(backend, torch.float64, (1, 9, 5, 3), maps, layout=layout, bias=False, prob_grad=False)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("maps", [2, 5, 16, 17, 64])
def test_numbers_of_maps_in_16_bits(backend, layout, dtype, maps):
    compare(backend, dtype, (2, 37, 7, 7), maps, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [3, 100, 1024, 1030, 2048, 5000])
def test_numbers_of_channels_in_16_bits(backend, layout, dtype, channels):
    compare(backend, dtype, (1, channels, 4, 5), 14, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_many_maps_of_many_channels(backend, layout, dtype):  # CUDA: groups of maps, halves of channels
    compare(backend, dtype, (2, 1100, 5, 9), 20, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_tiles(backend, layout):
    compare(backend, torch.float32, (3, 24, 40, 41), 14, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_images(backend, dtype, layout):  # so many that a block takes several tiles
    compare(backend, dtype, (133, 8, 5, 8), 14, layout=layout, scale=8.0)


@pytest.mark.skipif("native" not in FUSED, reason="the size suits the tiles of the CUDA kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_map_over_several_tiles(dtype, layout):  # a block walks them, its lanes' queues go round
    compare("native", dtype, (135, 520, 4, 40), 1, layout=layout)


@pytest.mark.skipif("native" not in FUSED, reason="the size suits the tiles of the CUDA kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_one_map_of_many_channels(dtype):  # tiles of half as many pixels
    compare("native", dtype, (2, 2040, 5, 8), 1)


@pytest.mark.skipif("native" not in FUSED, reason="the size suits the CUDA kernels that hold an image")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [8, 72, 200])
def test_one_map_of_images_in_shared_memory(dtype, channels):
    compare("native", dtype, (3, channels, 7, 7), 1, scale=8.0)
    compare("native", dtype, (3, channels, 7, 7), 1, bias=False, prob_grad=False)


@pytest.mark.skipif("native" not in FUSED, reason="the logits are outputs of the C++ op")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_weights_of_16_bit_features_are_float(layout, dtype, scale):
    x, weight = lay_out(draw((1, 200, 9, 8), dtype), layout), draw((14, 200), torch.float32, 2) * scale
    _, _, logits, norm = torch.ops.axnet.pwap(x, weight, None)
    expected = torch.nn.functional.conv2d(x.double(), weight.double()[..., None, None])
    assert_close("logits", logits, expected, 2e-5)
    rise = (
        torch.nn.functional.logsigmoid(logits.double())
        - torch.nn.functional.logsigmoid(norm[:, 0].double())[..., None, None]
    )
    assert_close("mass", norm[:, 1], rise.exp().sum((2, 3)), 2e-5)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [-30000.0, -200.0, 200.0])
def test_extreme_logits_stay_finite(backend, dtype, offset):
    x = draw((2, 8, 18, 18), dtype)
    weight, bias = draw((3, 8), dtype, 2), torch.full((3,), offset, dtype=dtype)
    pooled, prob = AF.pwap(x, weight, bias, backend=backend)
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(prob).all()
    if offset == -200.0 and dtype == torch.float64:  # far below zero, sigmoid is exp: a softmax over the pixels
        share = torch.nn.functional.conv2d(x, weight[..., None, None]).flatten(2).softmax(-1)
        assert_close("pooled", pooled, share @ x.flatten(2).transpose(1, 2), 1e-9)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("maps", [1, 7])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, maps, layout):
    x = lay_out(draw((2, 3, 3, 4)), layout).detach().requires_grad_()
    weight, bias = draw((maps, 3), seed=2).requires_grad_(), draw((maps,), seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: AF.pwap(*t, backend=backend), (x, weight, bias))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_shows(backend, dtype):
    x = draw((1, 4, 5, 5), dtype)
    x[0, 2, 3, 1] = float("nan")
    pooled, prob = AF.pwap(x, draw((2, 4), dtype), backend=backend)
    assert pooled.isnan().all()
    assert prob.isnan().sum() == 2


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_stays_in_its_channel(backend, dtype, layout):
    x, weight = lay_out(draw((1, 20, 5, 8), dtype), layout), draw((6, 20), dtype, 2)
    x[0, 2, 3, 1] = float("inf")
    pooled, prob = AF.pwap(x, weight, backend=backend)
    up = weight[:, 2] > 0  # the logit at this pixel is inf or -inf
    assert torch.equal(prob[0, :, 3, 1], up.to(dtype))
    assert torch.equal(pooled[0, :, 2] == float("inf"), up)
    assert pooled[0, ~up, 2].isnan().all()
    assert torch.isfinite(pooled[0][:, [c for c in range(20) if c != 2]]).all()


@pytest.mark.parametrize("backend", FUSED)
def test_same_bits_every_run_and_for_any_number_of_threads(backend):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(backend, torch.float32, (3, 70, 30, 30), 14))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", FUSED)
def test_only_the_weight_needs_a_gradient(backend):
    x, weight = draw((2, 6, 5, 5)), draw((3, 6), seed=2).requires_grad_()
    pooled, _ = AF.pwap(x, weight, backend=backend)
    (gradient,) = torch.autograd.grad(pooled.sum(), weight)
    (expected,) = torch.autograd.grad(AF.pwap(x, weight, backend="reference")[0].sum(), weight)
    assert_close("grad_weight", gradient, expected, 1e-10)


@pytest.mark.parametrize("backend", FUSED)
def test_double_backward_says_what_to_do(backend):
    x, weight = draw((1, 4, 3, 3)).requires_grad_(), draw((2, 4))
    (first,) = torch.autograd.grad((AF.pwap(x, weight, backend=backend)[0] ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported.*backend='reference'"):
        first.sum().backward()
