from __future__ import annotations

import copy

import pytest
import torch
from opcases import BACKENDS, FUSED, assert_close, draw, draw_mask
from opcases import golden as golden  # a fixture

from axnet import nn as axnn
from axnet.functional import masked_pool


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_masked_attention_reproduces_the_published_module(golden, backend, mode):
    stored = golden(f"masked_attention_{mode}.npz")
    x, mask = stored["x"].requires_grad_(), stored["mask"].requires_grad_()
    state = {key.removeprefix("state."): value for key, value in stored.items() if key.startswith("state.")}
    hidden = state["final_block.0.weight"].shape[1]
    module = axnn.MaskedAttention(x.shape[1], hidden / x.shape[1], dropout=0.0, backend=backend, dtype=torch.float64)
    module.load_state_dict(state)
    module.train(mode == "train")
    y = module(x, mask)
    y.backward(stored["grad_out"])
    assert_close("y", y.detach(), stored["y"], 1e-10)
    assert_close("grad_x", x.grad, stored["grad_x"], 1e-10)
    assert_close("grad_mask", mask.grad, stored["grad_mask"], 1e-10)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    for key, value in stored.items():
        if key.startswith("grad."):
            assert_close(key, parameters[key.removeprefix("grad.")].grad, value, 1e-10)
        elif key.startswith("after."):
            assert_close(key, buffers[key.removeprefix("after.")], value, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [1, 14])
def test_pcam_reproduces_the_published_module(golden, backend, classes):
    stored = golden(f"pcam_{classes}.npz")
    x = stored["x"].requires_grad_()
    head = axnn.PCAMHead(x.shape[1], classes, backend=backend, dtype=torch.float64)
    head.load_state_dict({"weight": stored["weight"], "bias": stored["bias"]})
    logits, prob = head(x)
    logits.backward(stored["grad_logits"].reshape(logits.shape))
    assert_close("logits", logits.detach(), stored["logits"].reshape(logits.shape), 1e-10)
    assert_close("prob", prob.detach(), stored["prob_maps"].reshape(prob.shape), 1e-10)
    assert_close("grad_x", x.grad, stored["grad_x"], 1e-10)
    assert_close("grad_weight", head.weight.grad, stored["grad_weight"].flatten(1), 1e-10)
    assert_close("grad_bias", head.bias.grad, stored["grad_bias"], 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_anatomy_is_masked_attention(backend):
    a3 = axnn.AnatomyAwareAttention(6, 1, reduction=0.5, dropout=0.0, backend=backend, dtype=torch.float64)
    peer = axnn.MaskedAttention(6, 0.5, dropout=0.0, backend=backend, dtype=torch.float64)
    with torch.no_grad():
        for j in range(4):
            peer.conv_list[j][0].weight.copy_(a3.hidden_weight[0, j, :, :, None, None])
            peer.conv_list[j][0].bias.copy_(a3.hidden_bias[0, j])
        peer.final_block[0].weight.copy_(a3.gate_weight[0, :, :, None, None])
        peer.final_block[0].bias.copy_(a3.gate_bias[0])
    x, mask = draw((3, 6, 5, 7)), draw_mask((3, 1, 10, 14))
    assert_close("z", a3(x, mask).detach(), peer(x, mask).detach(), 1e-12)


def test_the_gate_is_the_definition():
    # METHOD: sigmoid(V_a sum_j LeakyReLU(U_aj d_j + u_aj) + v_a), written out anatomy by anatomy
    module = axnn.AnatomyAwareAttention(5, 3, reduction=0.6, dropout=0.0, dtype=torch.float64)
    x, mask = draw((4, 5, 6, 6)), draw_mask((4, 3, 6, 6))
    pool = masked_pool(x, mask, backend="reference")
    for a in range(3):
        entries = (pool.avg, pool.max, pool.masked_max[:, a], pool.masked_avg[:, a])
        hidden = sum(
            torch.nn.functional.leaky_relu(e @ module.hidden_weight[a, j].T + module.hidden_bias[a, j], 0.2)
            for j, e in enumerate(entries)
        )
        expected = torch.sigmoid(hidden @ module.gate_weight[a].T + module.gate_bias[a])
        assert_close("gate", module.gate(pool)[:, a].detach(), expected.detach(), 1e-12)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_parameters_get_the_reference_gradients(backend, fusion):
    torch.manual_seed(0)
    reference = axnn.AnatomyAwareAttention(7, 2, fusion=fusion, dropout=0.0, backend="reference", dtype=torch.float64)
    module = copy.deepcopy(reference)
    module.backend = backend
    x, mask = draw((3, 7, 6, 5)), draw_mask((3, 2, 6, 5))
    grad = draw((3, module.out_channels, 6, 5), seed=5)
    module(x, mask).backward(grad)
    reference(x, mask).backward(grad)
    for (name, a), e in zip(module.named_parameters(), reference.parameters(), strict=True):
        assert_close(name, a.grad, e.grad, 1e-10)


def batch_norm_of(module, options):
    replaced = torch.nn.BatchNorm2d(4, dtype=torch.float64, **options)
    module.norm = replaced
    return module


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.7},
        {"track_running_stats": False},
        {"affine": False},
        {"affine": False, "track_running_stats": False, "eps": 0.1},
    ],
    ids=str,
)
def test_normalises_as_batch_norm_does(backend, options):
    torch.manual_seed(0)
    module = axnn.AnatomyAwareAttention(4, 2, dropout=0.0, backend=backend, dtype=torch.float64)
    module = batch_norm_of(module, options)
    # the blend alone, then torch's own normalisation
    plain = torch.nn.BatchNorm2d(4, dtype=torch.float64, **options)
    from axnet.reference import blend

    for step, training in enumerate((True, True, False, True, False)):
        module.train(training)
        plain.train(training)
        x, mask = draw((3, 4, 5, 6), seed=step), draw_mask((3, 2, 5, 6), seed=step)
        y = blend(x, mask, module.gate(masked_pool(x, mask, backend="reference")))
        assert_close(f"step {step}", module(x, mask).detach(), plain(y).detach(), 1e-11)
    for (name, a), e in zip(module.norm.named_buffers(), plain.buffers(), strict=True):
        assert_close(name, a, e, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_per_channel_is_refused_when_training(backend):
    module = axnn.AnatomyAwareAttention(4, 1, backend=backend)
    x, mask = torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        module(x, mask)
    module.eval()
    assert module(x, mask).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_the_gate_acts_in_training_only(backend):
    torch.manual_seed(0)
    module = axnn.AnatomyAwareAttention(16, 2, dropout=0.5, backend=backend)
    x, mask = draw((2, 16, 6, 6), torch.float32), draw_mask((2, 2, 6, 6), torch.float32)
    assert not torch.equal(module(x, mask), module(x, mask))
    module.eval()
    assert torch.equal(module(x, mask), module(x, mask))


def test_modules_survive_copy_pickle_and_state(tmp_path):
    module = axnn.AnatomyAwareAttention(6, 2, fusion="concat")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = axnn.AnatomyAwareAttention(6, 2, fusion="concat")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x, mask = draw((2, 6, 5, 5), torch.float32), draw_mask((2, 2, 5, 5), torch.float32)
    module.eval()
    other.eval()
    assert torch.equal(module(x, mask), copy.deepcopy(other)(x, mask))
    assert module(x, mask).shape[1] == module.out_channels == 12
    assert "fusion='concat'" in repr(module)
    assert "num_maps=3" in repr(axnn.PWAP(4, 3))


@pytest.mark.parametrize("grad", [True, False])
def test_a_model_in_channels_last_keeps_its_gates_matrices_as_they_are(grad):
    torch.manual_seed(0)
    net = axnn.AnatomyAwareAttention(6, 2).eval()
    x, mask = torch.randn(2, 6, 8, 8), torch.rand(2, 2, 8, 8)
    with torch.set_grad_enabled(grad):
        want = net(x, mask)
        moved = copy.deepcopy(net).to(memory_format=torch.channels_last)
        assert moved.hidden_weight.is_contiguous()
        torch.testing.assert_close(moved(x, mask), want)
        net.hidden_weight.data = net.hidden_weight.data.to(
            memory_format=torch.channels_last
        )  # as a loader may leave it
        torch.testing.assert_close(net(x, mask), want)
