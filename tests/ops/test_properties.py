"""What must hold for every input: the reference's numbers in any shape and layout, and symmetries to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opcases import DEVICE, DTYPES, FUSED, assert_close, draw, draw_mask, lay_out, plain_gate
from ops.test_attention import compare as compare_attention
from ops.test_pooling import compare as compare_pooling

from axnet import functional as AF

# derandomised: the same cases in every run, so that a failure is a change of the code
searched = settings(max_examples=100, deadline=None, derandomize=True, database=None)
LAYOUTS = ("contiguous", "channels_last", "sliced")
EXACT = (torch.float64, torch.float32, torch.bfloat16)


@st.composite
def layouts(choose):
    order = tuple(choose(st.permutations(range(4))))
    return order, tuple(choose(st.integers(1, 2)) for _ in order), tuple(choose(st.integers(0, 3)) for _ in order)


def shapes(dtype: torch.dtype, training: bool = False) -> st.SearchStrategy[tuple[int, ...]]:
    """(N, C, H, W). Where few numbers meet, a result can be a difference of nearly equal ones: float64 only."""
    wide = dtype == torch.float64
    sides = st.integers(1, 21)
    sizes = st.tuples(st.integers(0 if wide else 1, 5), st.integers(1 if wide else 8, 40), sides, sides)
    return sizes.filter(lambda s: s[0] * s[2] * s[3] >= (32 if not wide else 4 if training else 0))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@searched
@given(data=st.data())
def test_attention_in_any_shape_and_layout(backend, dtype, data):
    training = data.draw(st.booleans(), "training")
    grads = ["own", "other layout", *(["expanded"] if dtype == torch.float64 else [])]
    shape = data.draw(shapes(dtype, training), "shape")
    options = {
        "layout": data.draw(layouts(), "layout"),
        "anatomies": data.draw(st.integers(1, 6), "anatomies"),
        "fusion": data.draw(st.sampled_from(["mean", "concat"]), "fusion"),
        "grad": data.draw(st.sampled_from(grads), "grad"),
    }
    compare_attention(backend, dtype, shape, training=training, **options)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@searched
@given(data=st.data())
def test_pooling_in_any_shape_and_layout(backend, dtype, data):
    options = {
        "layout": data.draw(layouts(), "layout"),
        "bias": data.draw(st.booleans(), "bias"),
        "prob_grad": data.draw(st.booleans(), "prob_grad"),
    }
    compare_pooling(backend, dtype, data.draw(shapes(dtype), "shape"), data.draw(st.integers(1, 64), "maps"), **options)


@pytest.mark.parametrize("backend", FUSED)
@searched
@given(data=st.data())
def test_masks_in_any_layout(backend, data):
    shape = data.draw(shapes(torch.float64).filter(lambda s: s[0] > 0), "shape")
    x = draw(shape)
    mask = draw_mask((shape[0], data.draw(st.integers(1, 6), "anatomies"), *shape[2:]))
    moved = lay_out(mask, data.draw(layouts(), "layout"))
    plain = AF.masked_pool(x, mask, backend=backend)
    for name, a, e in zip(plain._fields, AF.masked_pool(x, moved, backend=backend), plain, strict=True):
        assert torch.equal(a, e), name


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_of_ones_changes_nothing(backend, dtype, layout):
    shape = (2, 37, 9, 13)
    x, ones = lay_out(draw(shape, dtype), layout), torch.ones(2, 2, 9, 13, dtype=dtype)
    pool = AF.masked_pool(x, ones, backend=backend)
    for a in range(2):
        assert torch.equal(pool.masked_max[:, a], pool.max)
        assert torch.equal(pool.masked_avg[:, a], pool.avg)
    z = AF.anatomy_attention(x, ones, plain_gate(2, 37, dtype), training=True, backend=backend)
    expected = torch.nn.functional.batch_norm(x.double(), None, None, training=True)  # Y = X, whatever the gate
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert_close("z", z, expected, tolerance)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_pixels_does_not_matter(backend, dtype, layout):
    n, c, h, w = 3, 20, 8, 11
    x, mask, weight = draw((n, c, h, w), dtype), draw_mask((n, 2, h, w), dtype), draw((5, c), dtype, 2)
    order = torch.randperm(h * w, generator=torch.Generator("cpu").manual_seed(3), device="cpu").to(DEVICE)

    def shuffled(t):
        return t.flatten(2)[..., order].reshape(t.shape)

    def outputs(x, mask):
        x = lay_out(x, layout)
        pool = AF.masked_pool(x, mask, backend=backend)
        z = AF.anatomy_attention(x, mask, plain_gate(2, c, dtype), training=True, backend=backend)
        return pool, z, *AF.pwap(x, weight, backend=backend)

    pool, z, pooled, prob = outputs(x, mask)
    moved_pool, moved_z, moved_pooled, moved_prob = outputs(shuffled(x), shuffled(mask))
    assert torch.equal(moved_pool.max, pool.max)
    assert torch.equal(moved_pool.masked_max, pool.masked_max)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    for name, a, e in (
        ("avg", moved_pool.avg, pool.avg),
        ("masked_avg", moved_pool.masked_avg, pool.masked_avg),
        ("z", moved_z, shuffled(z)),
        ("pooled", moved_pooled, pooled),
        ("prob", moved_prob, shuffled(prob)),
    ):
        assert_close(name, a, e, tolerance)


def statistics(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return draw((channels,), dtype, 5), draw_mask((channels,), dtype, 6) + 0.5


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_an_image_does_not_see_its_batch(backend, dtype, layout, fusion):
    n, c = 9, 24
    x, mask = lay_out(draw((n, c, 7, 9), dtype), layout), draw_mask((n, 2, 7, 9), dtype)
    out = c * (2 if fusion == "concat" else 1)
    gates, weight, stats = draw_mask((n, 2, c), dtype, 3), draw((14, c), dtype, 2), statistics(out, dtype)

    def outputs(index):
        part, own = x[index], mask[index]

        def gate(pool):  # not of torch: its sigmoid rounds otherwise at the end of a tensor
            return gates[index]

        with torch.no_grad():
            pool = AF.masked_pool(part, own, backend=backend)
            options = {"fusion": fusion, "backend": backend}
            z = AF.anatomy_attention(part, own, gate, None, None, *stats, **options)
            average = AF.attention_average(part, own, gate, None, None, *stats, **options)
            found = [*pool, z, average, *AF.pwap(part, weight, backend=backend)]
            if fusion == "mean":
                found += AF.attention_pwap(part, own, gate, None, None, *stats, weight, backend=backend)
        return found

    whole = outputs(slice(None))
    for index in (slice(0, 1), slice(1, 4), slice(4, 9), torch.arange(n - 1, -1, -1)):
        for k, (part, expected) in enumerate(zip(outputs(index), whole, strict=True)):
            assert torch.equal(part, expected[index]), f"output {k} of images {index}"


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("power", [-9, 6])
def test_a_power_of_two_passes_through(backend, dtype, layout, power):
    scale, c = 2.0**power, 20
    x, mask = lay_out(draw((2, c, 7, 9), dtype), layout), draw_mask((2, 2, 7, 9), dtype)
    weight, gate = draw((5, c), dtype, 2), draw_mask((2, 2, c), dtype, 3)
    mean, var = statistics(c, torch.float64)

    def outputs(x, scale):
        pool = AF.masked_pool(x, mask, backend=backend)
        prob_weight = weight / scale
        pooled, prob = AF.pwap(x, prob_weight, backend=backend)
        found = [[*pool, pooled], [prob], []]  # rise with the scale, do not, rise with its square
        for training in (True, False):
            running = mean * scale, var * scale**2
            found[1].append(
                AF.anatomy_attention(
                    *(x, mask, lambda pool: gate, None, None, *running),
                    **{"training": training, "momentum": 1.0, "eps": 1e-5 * scale**2, "backend": backend},
                )
            )
            if training:
                found[0].append(running[0])
                found[2].append(running[1])
        return found

    plain, scaled = outputs(x, 1.0), outputs(x * scale, scale)
    for factor, before, after in zip((scale, 1.0, scale**2), plain, scaled, strict=True):
        for k, (a, e) in enumerate(zip(after, before, strict=True)):
            assert torch.equal(a, e * factor), f"output {k} times {factor}"


def test_the_reference_of_one_image_and_one_anatomy_in_channels_last():
    # the concatenation was a view whose strides torch's batch_norm differentiates wrongly, by 100 %
    grads = []
    for layout in ("contiguous", "channels_last"):
        x = lay_out(draw((1, 8, 3, 11)), layout).requires_grad_()
        gate, grad = plain_gate(1, 8, x.dtype), draw((1, 8, 3, 11), seed=8)
        options = {"training": True, "fusion": "concat", "backend": "reference"}
        AF.anatomy_attention(x, draw_mask((1, 1, 3, 11)), gate, **options).backward(grad)
        grads.append(x.grad)
    assert_close("grad", grads[1], grads[0], 1e-12)
