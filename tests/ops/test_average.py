"""A3 before an average pool: the closed form against the average of Z."""

from __future__ import annotations

import pytest
import torch
from opcases import BACKENDS, DTYPES, TOLERANCE, assert_close, draw, draw_mask, lay_out, plain_gate

from axnet import functional as AF
from axnet import nn as ann
from axnet import ops, reference
from axnet.backends import resolve
from axnet.nn import heads as heads_module


def statistics(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    weight, bias, mean = (draw((channels,), dtype, seed) for seed in (1, 2, 3))
    return weight, bias, mean * 0.1, draw((channels,), dtype, 4).abs() + 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(
    ("anatomies", "fusion"), [(1, "mean"), (2, "mean"), (3, "concat"), (5, "mean"), (15, "concat")]
)
def test_closed_form(backend, dtype, layout, anatomies, fusion):
    x = lay_out(draw((2, 37, 9, 6), dtype, shift=0.5), layout)
    mask, gate = draw_mask((2, anatomies, 9, 6), dtype), plain_gate(anatomies, 37, dtype)
    numbers = statistics(37 * (anatomies if fusion == "concat" else 1), dtype)
    with torch.no_grad():
        actual = AF.attention_average(x, mask, gate, *numbers, fusion=fusion, backend=backend)
        wide = plain_gate(anatomies, 37, torch.float64)
        z = reference.anatomy_attention(
            x.double(), mask.double(), wide, *(n.double() for n in numbers), training=False, fusion=fusion
        )
    assert actual.dtype == dtype
    assert_close("average", actual, z.mean((2, 3)), TOLERANCE[dtype][0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_gradients(backend, fusion):
    grads = []
    for name in (backend, "reference"):
        x, mask = draw((2, 6, 5, 4)).requires_grad_(), draw_mask((2, 2, 5, 4)).requires_grad_()
        numbers = statistics(6 * (2 if fusion == "concat" else 1), torch.float64)
        for number in numbers[:2]:
            number.requires_grad_()
        out = AF.attention_average(x, mask, plain_gate(2, 6, x.dtype), *numbers, fusion=fusion, backend=name)
        (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        grads.append([x.grad, mask.grad, *(n.grad for n in numbers[:2])])
    for actual, expected in zip(*grads, strict=True):
        assert_close("gradient", actual, expected, 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_module(training, fusion):
    attention = ann.AnatomyAwareAttention(12, 2, fusion=fusion, dropout=0.0).train(training)
    with torch.no_grad():
        attention.norm.running_mean.normal_()
        attention.norm.running_var.uniform_(0.5, 2)
        x, mask = draw((3, 12, 7, 5), torch.float32), draw_mask((3, 2, 7, 5), torch.float32)
        assert_close("average", attention.average(x, mask), attention(x, mask).mean((2, 3)), 1e-5)
    assert attention.norm.num_batches_tracked == (2 if training else 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [1, 15])
def test_heads_share_a_read(training, count, monkeypatch):
    torch.manual_seed(0)
    heads = [ann.MaskedAttention(10, ratio=0.5, dropout=0.0).train(training) for _ in range(count)]
    for head in heads:
        head.bn3.running_mean.normal_()
        head.bn3.running_var.uniform_(0.5, 2)
    x, masks = draw((2, 10, 6, 6), torch.float32), draw_mask((2, count, 12, 12), torch.float32)
    with torch.no_grad():
        expected = torch.stack([head(x, masks[:, i : i + 1]).mean((2, 3)) for i, head in enumerate(heads)], 1)
        calls = []
        monkeypatch.setattr(
            AF, "attention_average", lambda *a, f=AF.attention_average, **k: calls.append(1) or f(*a, **k)
        )
        actual = ann.average_heads(heads, x, masks)
    assert actual.shape == (2, count, 10)
    assert_close("heads", actual, expected, 1e-5)
    assert len(calls) == (0 if training else 1)


def test_heads_that_differ_run_one_by_one():
    heads = [ann.MaskedAttention(4, dropout=0.0).eval() for _ in range(2)]
    heads[1].bn3.eps = 0.1
    x, masks = draw((2, 4, 3, 3), torch.float32), draw_mask((2, 2, 3, 3), torch.float32)
    with torch.no_grad():
        expected = torch.stack([head(x, masks[:, i : i + 1]).mean((2, 3)) for i, head in enumerate(heads)], 1)
        assert_close("heads", ann.average_heads(heads, x, masks), expected, 1e-5)


def test_heads_of_an_empty_batch_leave_the_running_statistics():
    heads = [ann.MaskedAttention(4).train() for _ in range(2)]
    averaged = ann.average_heads(heads, torch.rand(0, 4, 3, 3), torch.rand(0, 2, 3, 3))
    assert averaged.shape == (0, 2, 4)
    for head in heads:
        assert torch.equal(head.bn3.running_mean, torch.zeros(4))
        assert torch.equal(head.bn3.running_var, torch.ones(4))


def test_statistics_of_heads_keep_their_digits_under_autocast():
    torch.manual_seed(0)
    x = draw((4, 8, 6, 6), torch.float32, shift=3.0)
    masks, device = draw_mask((4, 2, 6, 6), torch.float32), x.device.type
    found = []
    for mixed in (False, True):
        heads = [ann.MaskedAttention(8, dropout=0.0).train() for _ in range(2)]
        for head in heads:  # a gate of 0.5, whose own layers cannot round
            torch.nn.init.zeros_(head.final_block[0].weight)
            torch.nn.init.zeros_(head.final_block[0].bias)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            ann.average_heads(heads, x, masks)
        found.append(torch.stack([head.bn3.running_var for head in heads]))
    assert_close("variance", found[1], found[0], 1e-6)


def test_synchronised_heads_share_a_read_in_inference(monkeypatch):
    heads = [ann.MaskedAttention(4, dropout=0.0).eval() for _ in range(3)]
    for head in heads:
        head.bn3 = torch.nn.SyncBatchNorm(4).eval()
    x, masks = draw((2, 4, 3, 3), torch.float32), draw_mask((2, 3, 3, 3), torch.float32)
    calls = []
    with torch.no_grad():
        expected = torch.stack([head(x, masks[:, i : i + 1]).mean((2, 3)) for i, head in enumerate(heads)], 1)
        monkeypatch.setattr(
            AF, "attention_average", lambda *a, f=AF.attention_average, **k: calls.append(1) or f(*a, **k)
        )
        assert_close("heads", ann.average_heads(heads, x, masks), expected, 1e-5)
    assert len(calls) == 1


def test_bad_arguments():
    x, mask, gate = torch.rand(2, 4, 3, 3), torch.rand(2, 1, 3, 3), plain_gate(1, 4, torch.float32)
    with pytest.raises(ValueError, match="running_mean or running_var is None, expected both"):
        AF.attention_average(x, mask, gate, None, None, None, torch.ones(4))
    with pytest.raises(ValueError, match=r"gate returned .* expected a floating type of shape \[2, 1, 4\]"):
        AF.attention_average(x, mask, lambda pool: torch.rand(2, 4), None, None, torch.zeros(4), torch.ones(4))
    heads = [ann.MaskedAttention(4) for _ in range(2)]
    with pytest.raises(ValueError, match=r"masks has 1 masks .* expected one per head, 2"):
        ann.average_heads(heads, x, mask)
    with pytest.raises(ValueError, match="heads has 0 modules, expected 1 to 16"):
        ann.average_heads([], x, mask)
    with pytest.raises(ValueError, match="x has 3 channels"):
        ann.average_heads(heads, torch.rand(2, 3, 3, 3), torch.rand(2, 2, 3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("anatomies", "maps"), [(1, 1), (2, 14), (6, 3)])
def test_attention_then_pwap(backend, dtype, layout, anatomies, maps):
    x = lay_out(draw((2, 37, 9, 6), dtype, shift=0.5), layout)
    mask, gate = draw_mask((2, anatomies, 9, 6), dtype), plain_gate(anatomies, 37, dtype)
    numbers, weight, bias = statistics(37, dtype), draw((maps, 37), dtype, 5) * 0.2, draw((maps,), dtype, 6)
    with torch.no_grad():
        pooled, prob = AF.attention_pwap(x, mask, gate, *numbers, weight, bias, backend=backend)
        wide = plain_gate(anatomies, 37, torch.float64)
        z = reference.anatomy_attention(x.double(), mask.double(), wide, *(n.double() for n in numbers), training=False)
        expected = reference.pwap(z, weight.double(), bias.double())
    assert pooled.dtype == prob.dtype == dtype
    assert_close("pooled", pooled, expected[0], 2 * TOLERANCE[dtype][0])
    assert_close("prob", prob, expected[1], 2 * TOLERANCE[dtype][0])


@pytest.mark.parametrize("grad", [True, False])
def test_pool_module(grad, monkeypatch):
    written = []
    monkeypatch.setattr(AF, "pwap", lambda *a, f=AF.pwap, **k: written.append(1) or f(*a, **k))
    attention, pooling = ann.AnatomyAwareAttention(12, 2), ann.PWAP(12, 3)
    x, mask = draw((3, 12, 7, 5), torch.float32), draw_mask((3, 2, 7, 5), torch.float32)
    attention(x, mask)  # running statistics other than 0 and 1
    attention.eval()
    with torch.set_grad_enabled(grad):
        pooled = attention.pool(x, mask, pooling)
        fused = not grad and ops.has_gated_pwap(resolve(None, x.device), x.device.type)
        assert len(written) == (0 if fused else 1)
        for actual, expected in zip(pooled, pooling(attention(x, mask)), strict=True):
            assert actual.requires_grad == grad
            assert_close("pool", actual, expected, 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 2])
def test_gradients_of_heads_that_are_trained_a_few_images_at_a_time(layout, images, monkeypatch):
    torch.manual_seed(0)
    heads = [ann.MaskedAttention(4, dropout=0.0, backend="reference").double().train() for _ in range(3)]
    x = draw((5, 4, 3, 6), torch.float64, shift=2.0).contiguous(memory_format=layout).requires_grad_()
    masks = draw_mask((5, 3, 3, 6), torch.float64).requires_grad_()
    parameters = [p for head in heads for p in head.parameters()]
    monkeypatch.setattr(heads_module, "CHUNK", {x.device.type: images * 4 * 3 * 6})

    def drawn():
        return masks * x.mean(1, keepdim=True).sigmoid()  # they depend on x, as masks of a network do

    weights = torch.randn(5, 3, 4, dtype=torch.float64)
    found = []
    for form in (
        lambda: ann.average_heads(heads, x, drawn()),
        lambda: torch.stack([head(x, drawn()[:, i : i + 1]).mean((2, 3)) for i, head in enumerate(heads)], 1),
    ):
        first = torch.autograd.grad((form() * weights).sum(), [x, masks, *parameters])
        again = torch.autograd.grad((form() * weights).sum(), [x, masks], create_graph=True)
        twice = torch.autograd.grad(sum(g.square().sum() for g in again), [x, masks])
        found.append((*first, *twice))
    for number, (a, b) in enumerate(zip(*found, strict=True)):
        assert_close(f"gradient {number}", a, b, 1e-10)


def test_heads_keep_x_alone_for_the_backward_pass():
    heads = [ann.MaskedAttention(16, dropout=0.0).train() for _ in range(3)]
    x, masks = torch.rand(2, 16, 32, 32).requires_grad_(), torch.rand(2, 3, 32, 32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
        ann.average_heads(heads, x, masks)
    large = [address for address, size in kept.items() if size >= x.nbytes]
    assert large == [x.data_ptr()]
