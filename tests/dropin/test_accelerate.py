from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import axnet
from axnet.dropin import checking
from axnet.dropin.probing import NoDropout

sys.path.insert(0, str(Path(__file__).parent))

import networks as nets

IMAGE = (2, 3, 24, 32)
CASES = {
    "one gate": (lambda: nets.PriorGate(16), [(2, 16, 7, 5), ("mask", 2, 1, 7, 5)], "mask-guided attention", 1),
    "a gate in other words": (
        lambda: nets.LinearGate(8),
        [(2, 8, 7, 5), ("mask", 2, 1, 7, 5)],
        "mask-guided attention",
        1,
    ),
    "15 gates": (
        lambda: nets.PriorNet(4),
        [(2, 1, 24, 32), ("mask", 2, 15, 12, 16)],
        "15 mask-guided gates before an average",
        1,
    ),
    "17 gates": (lambda: nets.PriorNet(4, 17), [(2, 1, 24, 32), ("mask", 2, 17, 6, 8)], "17 mask-guided gates", 1),
    "PCAM": (nets.PcamNet, [IMAGE], "PCAM pooling, 5 maps", 1),
    "PCAM with dropout": (lambda: nets.PcamNet(dropout=0.3), [IMAGE], "PCAM pooling, 5 maps", 1),
    "PCAM of 70 classes": (lambda: nets.PcamNet(classes=70), [IMAGE], "PCAM pooling, 70 maps", 1),
    "PCAM at once": (nets.PcamAtOnce, [IMAGE], "PCAM pooling, 5 maps", 1),
    "PCAM of one class": (lambda: nets.PcamAtOnce(classes=1), [IMAGE], "PCAM pooling, 1 map", 1),
    "a gate and PCAM": (nets.GateThenPcam, [(2, 8, 7, 5), ("mask", 2, 1, 7, 5)], "PCAM pooling, 3 maps", 1),
    "CBAM": (lambda: nets.ChannelGate(8), [(2, 8, 7, 5)], "average and maximum", 1),
    "average and maximum": (nets.AverageMaximum, [(2, 1, 24, 32)], "average and maximum", 1),
}


def draw(shapes):
    """Images of randn; what begins with "mask" lies in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for shape in shapes:
        masked = shape[0] == "mask"
        draw_one = torch.rand if masked else torch.randn
        made.append(draw_one(shape[1:] if masked else shape, generator=generator))
    return tuple(made)


@cache
def accelerated(name):
    build, shapes, *_ = CASES[name]
    torch.manual_seed(0)
    model = build()
    return model, axnet.accelerate(model, example=draw(shapes), time=False, quiet=True)


def made(name):
    """A model and its accelerated copy, both to be changed at will; the shapes it takes; what is replaced how often."""
    return *(copy.deepcopy(model) for model in accelerated(name)), *CASES[name][1:]


def answers(model, inputs, training):
    """Outputs, gradients of inputs and parameters, buffers: float64."""
    model = copy.deepcopy(model).double().train(training)
    inputs = [t.double().requires_grad_() for t in inputs]
    torch.manual_seed(3)
    with NoDropout():
        leaves = torch.utils._pytree.tree_leaves(model(*inputs))
    sum((leaf.sin() * 3).sum() for leaf in leaves).backward()
    gradients = [p.grad for p in [*inputs, *model.parameters()]]
    return [*(leaf.detach() for leaf in leaves), *gradients, *model.buffers()]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_replaced_computes_the_same(name, training):
    model, fast, shapes, what, count = made(name)
    replaced = [row for row in fast.axnet_report.replaced if what in row.what]
    assert len(replaced) == count, str(fast.axnet_report)
    assert replaced[0].eval is not None
    assert replaced[0].training is not None
    inputs = draw(shapes)
    for i, (a, b) in enumerate(zip(answers(model, inputs, training), answers(fast, inputs, training), strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-9 * max(a.abs().max().item(), 1e-3), i


@pytest.mark.parametrize("name", ["15 gates", "PCAM", "CBAM"])
def test_other_batches_sizes_and_layouts(name):
    model, fast, *_ = made(name)
    sizes = {
        "15 gates": [(3, 1, 40, 20), ("mask", 3, 15, 5, 9)],
        "PCAM": [(1, 3, 40, 20)],
        "CBAM": [(3, 8, 9, 4)],
    }[name]
    inputs = [t.to(memory_format=torch.channels_last) for t in draw(sizes)]
    for training in (False, True):
        for a, b in zip(answers(model, inputs, training), answers(fast, inputs, training), strict=True):
            assert (a - b).abs().max() <= 1e-9 * max(a.abs().max().item(), 1e-3)


def test_heads_become_one_read_of_x(monkeypatch):
    from axnet.ops import calls

    read = []
    original = calls.masked_moments
    monkeypatch.setattr(calls, "masked_moments", lambda *a, **k: read.append(a[1].shape) or original(*a, **k))
    _, fast, shapes, *_ = made("15 gates")
    for training in (False, True):
        read.clear()
        fast.train(training)(*draw(shapes))
        assert len(read) == 1


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["one gate", "15 gates", "PCAM", "CBAM"])
def test_restore_leaves_no_trace(name, inplace):
    build, shapes, *_ = CASES[name]
    torch.manual_seed(0)
    model = build()
    inputs = draw(shapes)
    next(model.parameters()).requires_grad_(False)
    called = []
    model.register_forward_hook(lambda *_: called.append(1))
    model.train()
    before = copy.deepcopy(model.state_dict())
    classes = {n: type(m) for n, m in model.named_modules()}
    state = torch.get_rng_state()
    fast = axnet.accelerate(model, example=inputs, time=False, inplace=inplace, quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (fast is model) == inplace
    assert list(fast.state_dict()) == list(before)
    assert all(torch.equal(fast.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in fast.parameters())
    assert all(m.training for m in fast.modules())
    assert all(isinstance(m, classes[n]) for n, m in fast.named_modules())
    assert not next(fast.parameters()).requires_grad
    called.clear()
    again = axnet.restore(fast)
    assert again is fast
    assert {n: type(m) for n, m in again.named_modules()} == classes
    assert not hasattr(again, "axnet_report")
    untouched = build()
    untouched.load_state_dict(before)
    for mode in (False, True):
        torch.manual_seed(5)
        a = torch.utils._pytree.tree_leaves(again.train(mode)(*inputs))
        torch.manual_seed(5)
        b = torch.utils._pytree.tree_leaves(untouched.train(mode)(*inputs))
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert len(called) == 2


def test_checkpoints_load_before_and_after():
    model, fast, shapes, *_ = made("15 gates")
    other = nets.PriorNet(4)
    fast.load_state_dict(other.state_dict())
    inputs = draw(shapes)
    torch.testing.assert_close(fast.eval()(*inputs), other.eval()(*inputs), rtol=1e-4, atol=1e-5)
    model.load_state_dict(fast.state_dict())


def test_hooks_put_on_later_are_called():
    _, fast, shapes, *_ = made("PCAM")
    seen = []
    handle = fast.fc_3.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    plain = axnet.restore(copy.deepcopy(fast)).eval()
    logits, _ = fast.eval()(*draw(shapes))
    assert len(seen) == 2  # the map and the classification, as the network has them
    assert torch.equal(logits[3], plain(*draw(shapes))[0][3])
    handle.remove()


def test_hooks_that_were_there_are_named():
    torch.manual_seed(0)
    model = nets.PcamNet()
    model.fc_2.register_forward_hook(lambda *_: None)
    fast = axnet.accelerate(model, example=draw([IMAGE]), time=False, quiet=True)
    assert not fast.axnet_report.replaced
    assert "'fc_2' has hooks" in str(fast.axnet_report)


def test_hooks_and_modes_of_the_normalisation_count():
    model, fast, shapes, *_ = made("15 gates")
    inputs = draw(shapes)
    for network in (model, fast):
        network.train()
        for block in network.attention[:4]:  # frozen, as while fine-tuning
            block.bn3.eval()
    for a, b in zip(_after(model, inputs), _after(fast, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    seen = []
    fast.attention[7].bn3.register_forward_hook(lambda *_: seen.append(1))
    fast(*inputs)
    assert seen


def _after(network, inputs):
    with NoDropout():
        out = network(*inputs)
    return [out.detach(), *network.buffers()]


def test_another_gradient_is_refused_with_the_difference():
    torch.manual_seed(0)
    model = nets.PcamAtOnce(detached=True)  # equal outputs, other gradients
    fast = axnet.accelerate(model, example=draw([IMAGE]), time=False, quiet=True)
    assert not fast.axnet_report.replaced
    (row,) = [row for row in fast.axnet_report.kept if "PCAM" in row.what]
    assert "refused: gradient" in row.why
    assert "deviates by" in row.why


def test_a_model_that_deviates_as_a_whole_is_left(monkeypatch):
    torch.manual_seed(0)
    model = nets.PcamNet()
    monkeypatch.setattr(checking.Pair, "deviation", lambda *_: None)
    from axnet.dropin import layers

    right = layers.probability_pooling
    wrong = lambda *a: tuple(t * 1.001 for t in right(*a))  # noqa: E731
    wrong.__name__, wrong.__module__ = "wrong", __name__
    monkeypatch.setattr(layers, "probability_pooling", wrong)
    with pytest.raises(ValueError, match=r"deviates as a whole.*eval.*deviates by 1\.0e-03"):
        axnet.accelerate(model, example=draw([IMAGE]), time=False, inplace=True, quiet=True)
    assert type(model) is nets.PcamNet


@pytest.mark.parametrize("gain", [0.4, 3.0])
def test_what_measures_slower_is_kept(monkeypatch, gain):
    monkeypatch.setattr(checking.Pair, "gain", lambda self, module, inputs, training: 3.0 if training else gain)
    torch.manual_seed(0)
    fast = axnet.accelerate(nets.PcamNet(), example=draw([IMAGE]), quiet=True)
    (row,) = [row for row in fast.axnet_report.rows if "PCAM" in row.what]
    assert row.training == 3.0
    assert row.eval == (3.0 if gain > 1 else None)
    assert ("no faster here (0.40x)" in row.why) == (gain < 1)


def test_timing_says_how_much_faster():
    torch.manual_seed(0)
    fast = axnet.accelerate(nets.PcamNet(64, 30), example=draw([(4, 3, 128, 128)]), quiet=True)
    (row,) = [row for row in fast.axnet_report.rows if "PCAM" in row.what]
    assert row.eval is not None
    assert row.eval > 1.05


def test_other_kinds_of_calls_take_the_original():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nets.AverageMaximum()

        def forward(self, x, scale=None, double=False):
            y = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
            y = y if scale is None else y * scale
            return 2 * y if double else y

    model = Optional()
    x = torch.randn(2, 4, 6, 5)
    fast = axnet.accelerate(model, example=x, time=False, quiet=True)
    assert fast.axnet_report.replaced
    for args, kwargs in (((x,), {}), ((x, torch.tensor(3.0)), {}), ((x,), {"double": True}), ((x, None, True), {})):
        assert torch.allclose(fast(*args, **kwargs), model(*args, **kwargs), atol=1e-6)
    with pytest.raises(TypeError):
        fast(x, wrong=1)
    with pytest.raises(TypeError):
        fast()


def test_masks_beyond_one_are_served_as_before():
    model, fast, *_ = made("15 gates")
    inputs = (draw([(2, 1, 24, 32)])[0], 3 * torch.randn(2, 15, 12, 16))
    torch.testing.assert_close(fast.eval()(*inputs), model.eval()(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_masks_of_whole_numbers_are_served_as_before(dtype):
    torch.manual_seed(0)
    plain = nets.PriorGate(8).eval()
    x, mask = torch.randn(2, 8, 7, 5), (torch.rand(2, 1, 7, 5) > 0.5).to(dtype)
    fast = axnet.accelerate(plain, time=False, quiet=True, example=(x, mask.float()))
    assert fast.axnet_report.replaced
    with torch.no_grad():
        torch.testing.assert_close(fast(x, mask), plain(x, mask), rtol=1e-4, atol=1e-5)


def test_squeeze_and_excitation_is_read_once_as_it_is():
    fast = axnet.accelerate(nets.SqueezeExcitation(8), example=torch.randn(2, 8, 7, 5), quiet=True)
    (row,) = fast.axnet_report.rows
    assert (row.what, row.replaced, row.why) == ("global average", False, "X is read once as it is")


def test_copies_files_and_compiled_models():
    _, fast, shapes, *_ = made("15 gates")
    inputs = draw(shapes)
    fast.eval()
    wanted = fast(*inputs)
    again = copy.deepcopy(fast)
    assert type(again) is type(fast)
    again.classifier[0].bias.data.add_(1)
    assert torch.allclose(again(*inputs)[:, 1:], wanted[:, 1:], atol=1e-6)
    assert torch.allclose(again(*inputs)[:, 0], wanted[:, 0] + 1, atol=1e-5)
    loaded = pickle.loads(pickle.dumps(fast))
    assert type(loaded) is nets.PriorNet
    assert torch.allclose(loaded(*inputs), wanted, atol=1e-5)
    buffer = io.BytesIO()
    torch.save(fast.state_dict(), buffer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["15 gates", "PCAM", "one gate", "CBAM"])
def test_compile_and_export(name):
    _, fast, shapes, *_ = made(name)
    inputs = draw(shapes)
    fast.eval()
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(fast(*inputs))
        found = torch.utils._pytree.tree_leaves(torch.compile(fast, fullgraph=True, backend="eager")(*inputs))
        exported = torch.utils._pytree.tree_leaves(torch.export.export(fast, inputs).module()(*inputs))
    for a, b, c in zip(wanted, found, exported, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a, c, atol=1e-5)


@pytest.mark.parametrize("name", ["one gate", "15 gates", "PCAM at once", "CBAM"])
def test_inputs_are_guessed(name, capsys):
    build, *_, what, _ = CASES[name]
    torch.manual_seed(0)
    small = nets.PriorNet(8, 3) if name == "15 gates" else build()
    fast = axnet.accelerate(small, time=False, verify=False)
    assert what.replace("15", "3") in capsys.readouterr().out
    assert fast.axnet_report.replaced


def test_what_cannot_be_guessed_is_asked_for():
    class Odd(nn.Module):
        def forward(self, words, x):
            return x[words["a"]]

    with pytest.raises(ValueError, match="expected example="):
        axnet.accelerate(Odd())


def test_wrong_arguments():
    with pytest.raises(TypeError, match="model is a str, expected"):
        axnet.accelerate("model")
    with pytest.raises(TypeError, match="model is a str, expected"):
        axnet.restore("model")
    _, fast, *_ = made("CBAM")
    with pytest.raises(ValueError, match="accelerated already"):
        axnet.accelerate(fast)


def test_a_forward_without_a_graph_is_named():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.pool(x) if x.sum() > 0 else x

    fast = axnet.accelerate(Branching(), example=torch.randn(2, 4, 6, 5), quiet=True)
    (row,) = fast.axnet_report.kept
    assert row.what == "a forward without a graph"
    assert "control flow" in row.why


def test_nothing_to_find():
    fast = axnet.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), example=torch.randn(2, 3, 8, 8), quiet=True)
    assert "nothing found" in str(fast.axnet_report)
    assert not fast.axnet_report.rows


def test_importing_axnet_alone_brings_both():
    code = "import axnet; print(axnet.accelerate.__name__, axnet.restore.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["accelerate", "restore"]


def test_two_places_in_one_forward():
    _, fast, *_ = made("a gate and PCAM")
    assert sorted(row.what for row in fast.axnet_report.replaced) == ["PCAM pooling, 3 maps", "mask-guided attention"]
