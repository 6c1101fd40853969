from __future__ import annotations

import math

import pytest
import torch
from opcases import (
    BACKENDS,
    DEVICE,
    DTYPES,
    FUSED,
    LAYOUTS,
    SHAPES,
    TOLERANCE,
    assert_close,
    draw,
    draw_mask,
    lay_out,
    plain_gate,
)
from torch.utils._python_dispatch import TorchDispatchMode

from axnet import functional as AF
from axnet.nn import AnatomyAwareAttention
from axnet.ops import calls, fused_ops, has_matrix_gate

NAMES = ("z", "grad_x", "grad_mask", "grad_weight", "grad_bias", "running_mean", "running_var")


def run(
    backend, dtype, shape, *, anatomies=2, layout="contiguous", fusion="mean", training=True, shift=0.0, grad="own"
):
    """Everything that one call of anatomy_attention produces, for an input whose values `dtype` can hold."""
    n, c, h, w = shape
    compute = torch.float64 if backend == "reference" else dtype
    x = lay_out(draw(shape, dtype, shift=shift).to(compute), layout).detach().requires_grad_()
    mask = draw_mask((n, anatomies, h, w), dtype).to(compute).requires_grad_()
    channels = c * (anatomies if fusion == "concat" else 1)
    weight = (1 + draw((channels,), dtype, 3) / 4).to(compute).requires_grad_()
    bias = draw((channels,), dtype, 4).to(compute).requires_grad_()
    mean, var = draw((channels,), dtype, 5).to(compute), draw_mask((channels,), dtype, 6).to(compute) + 0.5
    z = AF.anatomy_attention(
        x,
        mask,
        plain_gate(anatomies, c, dtype),
        weight,
        bias,
        mean,
        var,
        training=training,
        fusion=fusion,
        backend=backend,
    )
    grad_z = draw(tuple(z.shape), dtype, 8).to(compute)
    if grad == "expanded":
        grad_z = grad_z[:1, :, :1, :1].expand(z.shape) if n else grad_z
    elif grad == "other layout":
        grad_z = lay_out(grad_z, "channels_last" if layout == "contiguous" else "contiguous")
    z.backward(grad_z)
    return z.detach(), x.grad, mask.grad, weight.grad, bias.grad, mean, var


def compare(backend, dtype, shape, **options):
    expected = run("reference", dtype, shape, **options)
    actual = run(backend, dtype, shape, **options)
    forward, backward = TOLERANCE[dtype]
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_close(name, a, e, backward if name.startswith("grad") else forward)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrix_training(backend, dtype, layout, shape):
    if shape[0] == 0:
        x, mask = draw(shape, dtype).requires_grad_(), draw_mask((0, 2, 7, 7), dtype)
        z = AF.anatomy_attention(x, mask, plain_gate(2, 8, dtype), training=True, backend=backend)
        z.sum().backward()
        assert z.shape == shape
        assert x.grad.shape == shape
        return
    # a single pixel leaves two values per channel: dX is then a difference of nearly equal numbers, for float64 only
    if shape[2] * shape[3] == 1 and dtype != torch.float64:
        compare(backend, dtype, shape, layout=layout, training=False)
        return
    compare(backend, dtype, shape, layout=layout)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("fusion", ["mean", "concat"])
@pytest.mark.parametrize("anatomies", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("training", [True, False])
def test_anatomies_and_fusions(backend, dtype, layout, fusion, anatomies, training):
    compare(backend, dtype, (3, 13, 7, 6), layout=layout, fusion=fusion, anatomies=anatomies, training=training)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grad", ["expanded", "other layout"])
def test_layouts_of_the_gradient(backend, layout, grad):
    compare(backend, torch.float64, (2, 20, 7, 9), layout=layout, grad=grad)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("anatomies", "every"), [(2, 1), (2, 3), (5, 3)])
def test_mean_far_above_the_spread(backend, layout, anatomies, every):
    # |mean| / std = 1000 in some channels: sums of squares without a shift lose every digit of the variance in float32
    shape, shift = (4, 12, 16, 16), torch.zeros(12, 1, 1, dtype=torch.float64)
    shift[::every] = 1000
    expected = run("reference", torch.float32, shape, layout=layout, shift=shift, anatomies=anatomies)
    actual = run(backend, torch.float32, shape, layout=layout, shift=shift, anatomies=anatomies)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        if name in ("z", "running_mean", "running_var"):
            assert_close(name, a, e, 2e-4)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("kind", ["bool", "uint8", "float16", "finer", "coarser"])
def test_kinds_of_masks(backend, kind):
    x = draw((2, 6, 8, 10))
    fine = draw_mask((2, 2, 32, 40), torch.float64)
    mask = {
        "bool": fine > 0.5,
        "uint8": (fine * 255).to(torch.uint8),
        "float16": fine.half(),
        "finer": fine,
        "coarser": fine[:, :, :4, :5],
    }[kind]
    gate = plain_gate(2, 6, torch.float64)
    expected = AF.anatomy_attention(x, mask, gate, training=True, backend="reference")
    assert_close("z", AF.anatomy_attention(x, mask, gate, training=True, backend=backend), expected, 1e-11)
    if kind == "uint8":
        same = AF.anatomy_attention(x, mask.double() / 255, gate, training=True, backend=backend)
        assert_close("z", same, expected, 1e-11)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_masked_pool_by_hand(backend):
    x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]], dtype=torch.float64)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]], dtype=torch.float64)
    pool = AF.masked_pool(x, mask, backend=backend)
    assert pool.avg.item() == pytest.approx(1.5)
    assert pool.max.item() == 4.0
    assert pool.masked_avg.item() == pytest.approx(2.5 / 4)
    assert pool.masked_max.item() == 1.5


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_masked_pool(backend, dtype, layout, shape):
    def outputs(name):
        compute = torch.float64 if name == "reference" else dtype
        x = lay_out(draw(shape, dtype).to(compute), layout).detach().requires_grad_()
        mask = draw_mask((shape[0], 3, *shape[2:]), dtype).to(compute).requires_grad_()
        pool = AF.masked_pool(x, mask, backend=name)
        sum((part * draw(tuple(part.shape), dtype, 9).to(compute)).sum() for part in pool).backward()
        return (*(part.detach() for part in pool), x.grad, mask.grad)

    for k, (a, e) in enumerate(zip(outputs(backend), outputs("reference"), strict=True)):
        assert_close(f"output {k}", a, e, TOLERANCE[dtype][k > 3])


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_features_show(backend, layout, value):
    x = draw((1, 20, 6, 7), torch.float32)
    x[0, 3, 5, 2] = value
    mask = torch.full((1, 1, 6, 7), 0.5)
    a = AF.masked_pool(lay_out(x, layout), mask, backend=backend)
    e = AF.masked_pool(x, mask, backend="reference")
    torch.testing.assert_close(a.max, e.max, equal_nan=True)
    torch.testing.assert_close(a.masked_max, e.masked_max, equal_nan=True)
    torch.testing.assert_close(a.avg, e.avg, equal_nan=True)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, fusion, training, layout):
    anatomies, shape = 2, (2, 3, 3, 4)
    channels = 3 * (2 if fusion == "concat" else 1)
    x = lay_out(draw(shape), layout).detach().requires_grad_()
    mask = (draw_mask((2, anatomies, 3, 4)) * 0.8 + 0.1).requires_grad_()
    weight, bias = draw((channels,), seed=3).requires_grad_(), draw((channels,), seed=4).requires_grad_()
    mean, var = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    gate = plain_gate(anatomies, 3, torch.float64)

    def f(x, mask, weight, bias):
        return AF.anatomy_attention(
            x, mask, gate, weight, bias, mean.clone(), var.clone(), training=training, fusion=fusion, backend=backend
        )

    assert torch.autograd.gradcheck(f, (x, mask, weight, bias))


@pytest.mark.parametrize("backend", FUSED)
def test_eval_without_gradients_equals_eval_with(backend):
    x, mask = draw((2, 20, 7, 9), torch.float32), draw_mask((2, 2, 7, 9), torch.float32)
    gate = plain_gate(2, 20, torch.float32)
    stats = (torch.zeros(20), torch.ones(20))
    with_grad = AF.anatomy_attention(x.clone().requires_grad_(), mask, gate, None, None, *stats, backend=backend)
    with torch.no_grad():
        without = AF.anatomy_attention(x, mask, gate, None, None, *stats, backend=backend)
    torch.testing.assert_close(without, with_grad.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FUSED)
def test_same_bits_every_run_and_for_any_number_of_threads(backend):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(backend, torch.float32, (3, 70, 16, 16)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
@pytest.mark.parametrize("side", [7, 13, 14, 32])
def test_what_is_saved_for_backward(backend, side, fusion):
    # X itself, the masks and numbers per (n, c): no second map of X's size
    n = 2 if side == 32 else 16  # of small maps the numbers per channel alone count, too
    x = draw((n, 64, side, side), torch.float32).requires_grad_()
    mask = draw_mask((n, 2, side, side), torch.float32)
    fixed = torch.full((n, 2, 64), 0.5)
    gate = plain_gate(2, 64, torch.float32) if side == 32 else lambda pool: fixed
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        AF.anatomy_attention(x, mask, gate, training=True, fusion=fusion, backend=backend)
    bytes_x, bytes_mask = x.numel() * 4, mask.numel() * 4
    share = 1.1 if x.device.type == "cpu" or side > 13 else 1.5  # elsewhere small maps are bound by launches
    assert bytes_x <= sum(kept.values()) <= share * bytes_x + bytes_mask


@pytest.mark.parametrize("backend", FUSED)
def test_double_backward_says_what_to_do(backend):
    x, mask = draw((2, 4, 5, 5)).requires_grad_(), draw_mask((2, 1, 5, 5))
    z = AF.anatomy_attention(x, mask, plain_gate(1, 4, torch.float64), training=True, backend=backend)
    (first,) = torch.autograd.grad((z**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported.*backend='reference'"):
        first.sum().backward()


@pytest.mark.parametrize("backend", FUSED)
def test_a_link_serves_one_gate_norm(backend):
    ops, acc = fused_ops(backend), torch.float32
    x, mask, gate = draw((2, 4, 5, 5), acc).requires_grad_(), draw_mask((2, 1, 5, 5), acc), draw_mask((2, 1, 4), acc)
    first = calls.masked_moments(ops, x, mask, second=True, positions=True, blocks=1)
    norm = {"weight": None, "bias": None, "running_mean": None, "running_var": None, "eps": 1e-5, "concat": False}
    given = {"moments": first.moments, "mass": first.mass, **norm, "save": True}
    given |= {"link": first.link, "coef_link": first.coef_link}
    calls.gate_norm(ops, x.detach(), mask, gate, **given).z.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="link was used before"):
        calls.gate_norm(ops, x.detach(), mask, gate, **given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_an_empty_batch_leaves_the_running_statistics(backend, fusion):
    channels = 16 if fusion == "concat" else 8
    mean, var = draw((channels,), seed=5), draw_mask((channels,), seed=6) + 0.5
    kept = mean.clone(), var.clone()
    x, mask = draw((0, 8, 7, 7)), draw_mask((0, 2, 7, 7))
    gate = plain_gate(2, 8, torch.float64)
    AF.anatomy_attention(x, mask, gate, None, None, mean, var, training=True, fusion=fusion, backend=backend)
    assert torch.equal(mean, kept[0])
    assert torch.equal(var, kept[1])


def test_reference_differentiates_twice():
    x, mask = draw((2, 2, 2, 3)).requires_grad_(), draw_mask((2, 1, 2, 3))
    gate = plain_gate(1, 2, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x: AF.anatomy_attention(x, mask, gate, training=True, backend="reference"), (x,)
    )


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "anatomies"),
    # several shares of the pixels, more masks than a GPU's shared memory holds at a time, more rows than a block,
    # a last chunk that is not full, vectors that end a channel and begin the next, rows that come in pieces and in runs
    [
        *[((1, 40, 48, 48), 2), ((1, 16, 72, 72), 3), ((2, 264, 5, 8), 1), ((1, 2640, 3, 3), 2), ((1, 32, 21, 21), 2)],
        *[((2, 288, 8, 16), 3), ((2, 288, 7, 7), 1), ((2, 32, 7, 7), 3)],
    ],
    ids=str,
)
def test_every_way_through_a_map(backend, dtype, layout, shape, anatomies):
    compare(backend, dtype, shape, layout=layout, anatomies=anatomies)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("anatomies", [3, 4, 15, 16])
def test_descriptors_of_many_masks(backend, dtype, layout, anatomies):
    x = lay_out(draw((2, 24, 20, 17), dtype), layout)
    mask = draw_mask((2, anatomies, 20, 17), dtype)
    expected = AF.masked_pool(x.double(), mask.double(), backend="reference")
    for name, a, e in zip(expected._fields, AF.masked_pool(x, mask, backend=backend), expected, strict=True):
        assert_close(name, a, e, TOLERANCE[dtype][0])


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("positions", [False, True])
def test_a_mask_that_is_not_a_number_shows(backend, dtype, layout, positions, monkeypatch):
    monkeypatch.setattr("axnet.checks._check_range", lambda mask: None)  # on a GPU nobody looks at a mask's values
    x = lay_out(draw((2, 16, 12, 12), dtype), layout).requires_grad_(positions)
    mask = draw_mask((2, 2, 12, 12), dtype)
    mask[1, 0, 3, 4] = float("nan")
    a = AF.masked_pool(x, mask, backend=backend)
    e = AF.masked_pool(x, mask, backend="reference")
    for name in e._fields:
        assert torch.equal(getattr(a, name).isnan(), getattr(e, name).isnan()), name
    assert a.masked_max[1, 0].isnan().all()


needs_matrix_gate = pytest.mark.skipif(
    "native" not in FUSED or not has_matrix_gate(torch.device(DEVICE).type), reason="of the CUDA kernels"
)


@needs_matrix_gate
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("images", "anatomies"), [(1, 2), (8, 1), (9, 3), (64, 2), (65, 2)])
@pytest.mark.parametrize("offset", [0, 1])
def test_gate_of_16_bit_weights(dtype, images, anatomies, offset):
    torch.manual_seed(0)
    channels, hidden = 128, 256
    descriptors = torch.randn(images, 2 + 2 * anatomies, channels, device=DEVICE)
    shapes = [(anatomies, 4, hidden, channels), (anatomies, 4, hidden)]
    shapes += [(anatomies, channels, hidden), (anatomies, channels)]
    weights = []
    for shape in shapes:
        flat = (torch.randn(math.prod(shape) + offset, device=DEVICE) / 16).to(dtype)  # a part of a larger parameter
        weights.append(flat[offset:].view(shape))
    if images > 64:
        with pytest.raises(RuntimeError, match=r"matrix_gate: descriptors has shape \[65, .*at most 64 images"):
            torch.ops.axnet.matrix_gate(descriptors, *weights)
        return
    gate = torch.ops.axnet.matrix_gate(descriptors, *weights)
    first, first_bias, second, second_bias = (t.double() for t in weights)
    d = descriptors.to(dtype).double()
    order = [[0, 1, 2 + anatomies + a, 2 + a] for a in range(anatomies)]
    hidden_units = torch.einsum("naec,aehc->naeh", torch.stack([d[:, rows] for rows in order], 1), first) + first_bias
    summed = torch.nn.functional.leaky_relu(hidden_units, 0.2).sum(2)
    expected = (torch.einsum("nah,ach->nac", summed, second) + second_bias).sigmoid()
    # what is left is the rounding of the sums to the weights' type
    assert (gate - expected).abs().max() <= {torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    if offset == 0:
        torch.library.opcheck(torch.ops.axnet.matrix_gate.default, (descriptors, *weights))


@needs_matrix_gate
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("images", [1, 9, 65])
def test_the_module_takes_the_gate_of_16_bit_weights(dtype, images):
    torch.manual_seed(0)
    module = AnatomyAwareAttention(128, 2, backend="native").eval().to(DEVICE, dtype)
    plain = AnatomyAwareAttention(128, 2, backend="reference").eval().double().to(DEVICE)
    plain.load_state_dict(module.state_dict())
    x, mask = draw((images, 128, 3, 5), dtype), draw_mask((images, 2, 3, 5), torch.float32)
    seen = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Calls():
        actual = module(x, mask)
    with torch.no_grad():
        expected = plain(x.double(), mask.double())
    assert ("axnet::matrix_gate" in seen) == (images <= 64)
    assert (actual.double() - expected).abs().max() <= 1.5e-2 * expected.abs().max()
