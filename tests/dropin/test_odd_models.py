"""accelerate and restore on models that somebody did something to: bit-equal afterwards, or one sentence."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import axnet

sys.path.insert(0, str(Path(__file__).parent))

import networks as nets

torch_image = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
FEATURES = (torch_image[:, :1].expand(2, 8, 24, 32)[..., :7, :5].contiguous(), torch.rand(2, 1, 7, 5))
MASKS = (FEATURES[0], torch.rand(2, 3, 7, 5))


class SharedGate(nn.Module):
    """One gate twice in a row, under two names, then an average."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nets.PriorGate(8, dropout=0.0)

    def forward(self, x, mask):
        return self.b(self.a(x, mask), mask).mean((2, 3))


class OneGate(nn.Module):
    """One gate for several masks."""

    def __init__(self):
        super().__init__()
        self.gate = nets.PriorGate(8, dropout=0.0)

    def forward(self, x, masks):
        return torch.stack([self.gate(x, masks[:, i : i + 1]).mean((2, 3)) for i in range(3)], 1)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def pcam():
    return nets.PcamNet(classes=3)


def changed(model, *changes):
    for change in changes:
        change(model)
    return model


def tied(model):
    model.fc_1 = model.fc_0


def frozen(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.backbone.eval()


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def owned(model):
    model.inner.__dict__["owner"] = model


MODELS = {
    "a gate twice": (SharedGate, MASKS[:1] + FEATURES[1:], 1),
    "a gate for three masks": (OneGate, MASKS, 2),
    "tied classifiers": (lambda: changed(pcam(), tied), (torch_image,), 1),
    "hooks": (
        lambda: changed(
            pcam(),
            lambda m: m.register_forward_pre_hook(lambda *_: None),
            lambda m: m.register_full_backward_hook(lambda *_: None),
        ),
        (torch_image,),
        1,
    ),
    "hooks within": (
        lambda: changed(pcam(), lambda m: m.fc_0.register_forward_hook(lambda *_: None)),
        (torch_image,),
        0,
    ),
    "DataParallel": (lambda: nn.DataParallel(pcam()), (torch_image,), 1),
    "torch.compile": (lambda: torch.compile(pcam(), backend="eager"), (torch_image,), 1),
    "compiled in place": (lambda: changed(pcam(), lambda m: m.compile(backend="eager")), (torch_image,), 1),
    "scripted within": (lambda: Around(torch.jit.trace(pcam().eval(), torch_image)), (torch_image,), 0),
    "half": (lambda: pcam().half(), (torch_image.half(),), 1),
    "bfloat16": (lambda: nets.PriorGate(8).bfloat16(), tuple(t.bfloat16() for t in FEATURES), 1),
    "frozen": (lambda: changed(pcam(), frozen), (torch_image,), 1),
    "with gradients": (lambda: changed(pcam(), with_gradients), (torch_image,), 1),
    "weight norm": (
        lambda: changed(pcam(), lambda m: nn.utils.parametrizations.weight_norm(m.fc_0)),
        (torch_image,),
        1,
    ),
    "knows its owner": (lambda: changed(Around(pcam()), owned), (torch_image,), 1),
    "a GraphModule": (lambda: torch.fx.symbolic_trace(pcam()), (torch_image,), 1),
    "averaged weights": (lambda: torch.optim.swa_utils.AveragedModel(pcam()), (torch_image,), 1),
}


def facts(model):
    """Everything that must be as it was, by name."""
    found = {f"state {n}": t.clone() for n, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[f"parameter {name}"] = id(parameter), parameter.requires_grad
        found[f"gradient {name}"] = None if parameter.grad is None else parameter.grad.clone()
    for name, module in model.named_modules():
        hooks = [list(getattr(module, f"_{kind}_hooks")) for kind in ("forward", "forward_pre", "backward")]
        found[f"module {name}"] = type(module), module.training, hooks, sorted(module.__dict__)
    return found


def outputs(model, inputs):
    found = []
    for training in (False, True):
        own = copy.deepcopy(model).train(training)
        torch.manual_seed(1)
        found += [t.detach() for t in torch.utils._pytree.tree_leaves(own(*inputs))]
    return found


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", MODELS)
def test_restored_is_as_before(name):
    build, inputs, replaced = MODELS[name]
    torch.manual_seed(0)
    model = build()
    before, expected = facts(model), outputs(model, inputs)
    fast = axnet.accelerate(model, inplace=True, example=inputs, time=False, quiet=True)
    assert len(fast.axnet_report.replaced) == replaced, str(fast.axnet_report)
    for a, b in zip(expected, outputs(fast, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if a.dtype in (torch.half, torch.bfloat16) else 1e-4, atol=1e-2)
    again = axnet.restore(fast)
    assert again is model
    after = facts(again)
    assert before.keys() == after.keys()
    assert [n for n in before if not same(before[n], after[n])] == []
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(again, inputs), strict=True))


def test_scripted_model_is_named_and_left():
    model = torch.jit.trace(pcam().eval(), torch_image)
    fast = axnet.accelerate(model, example=torch_image, quiet=True)
    assert [row.what for row in fast.axnet_report.kept] == ["TorchScript"]
    assert not fast.axnet_report.replaced
    assert axnet.restore(fast) is fast


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: pcam().to("meta"), "model has 'backbone.0.weight' on the meta device"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), "model has the parameter '0.weight' without a shape"),
    ],
    ids=["meta", "lazy"],
)
def test_a_model_without_numbers_is_one_sentence(build, said):
    with pytest.raises(ValueError, match=said) as error:
        axnet.accelerate(build(), example=torch_image)
    assert str(error.value).count(".") <= 4


def test_example_on_meta():
    with pytest.raises(ValueError, match="example lies on the meta device"):
        axnet.accelerate(pcam(), example=torch_image.to("meta"))


class Scaled(nn.Module):
    """Average and maximum, with arguments that are no tensors; in training alone it wants the last."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm1d(16)

    def forward(self, x, scale=None, double=False, target=None):
        if self.training and target is None:
            raise ValueError("in training there has to be a target")
        x = self.stem(x)
        y = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.norm(y if scale is None else y * scale) * (2 if double else 1)


@pytest.mark.parametrize("more", [(), (None, True), (3, False, 1.0), (2.5, True, "target")])
@pytest.mark.parametrize("images", [1, 2])
def test_examples_with_other_arguments_and_of_one_image(more, images):
    """A batch of one is nothing to normalise over; a mode in which the model itself fails is not compared."""
    torch.manual_seed(0)
    plain = Scaled()
    x = torch.randn(images, 3, 24, 32)
    fast = axnet.accelerate(plain, example=(x, *more), time=False, quiet=True)
    (row,) = fast.axnet_report.replaced
    trained = len(more) == 3
    assert row.eval is not None
    assert (row.training is not None) == trained
    assert trained or row.why == "training: a forward without a graph: in training there has to be a target"
    for training in (False, True) if trained else (False,):
        two = torch.randn(2, 3, 24, 32), *more
        torch.testing.assert_close(fast.train(training)(*two), plain.train(training)(*two), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_is_compared_in_training(monkeypatch):
    from axnet.dropin import checking, layers

    right = layers.average_max
    wrong = lambda x: tuple(t * (1 + torch.is_grad_enabled()) for t in right(x))  # noqa: E731
    wrong.__name__, wrong.__module__ = "wrong", __name__
    monkeypatch.setattr(layers, "average_max", wrong)
    monkeypatch.setattr(checking.Pair, "deviation", lambda *_: None)
    with pytest.raises(ValueError, match="deviates as a whole"):
        axnet.accelerate(Scaled(), example=(torch_image[:1], None, False, 1), time=False, quiet=True)


@pytest.mark.parametrize("example", [{"x": torch_image}, torch_image.numpy(), "image", 3, iter([torch_image])])
def test_an_example_of_another_kind(example):
    with pytest.raises(TypeError, match=f"example is a {type(example).__name__}, expected a tensor, or a tuple of"):
        axnet.accelerate(pcam(), example=example)


@pytest.mark.parametrize(
    "example", [(), (torch_image, torch_image), torch_image[:, :2], torch_image.double(), [1.0], [torch_image.tolist()]]
)
def test_an_example_that_the_model_does_not_take(example):
    with pytest.raises(ValueError, match=r"example is not what model can be called with \((Type|Runtime)Error: "):
        axnet.accelerate(pcam(), example=example)


@pytest.mark.parametrize("build", [pcam, lambda: Around(pcam())], ids=["replaced", "around it"])
def test_a_pickled_model_knows_nothing_of_axnet(build):
    fast = axnet.accelerate(build(), example=torch_image, time=False, quiet=True)
    assert copy.deepcopy(fast).axnet_report.rows == fast.axnet_report.rows
    written = pickle.dumps(fast)
    said = [argument for _, argument, _ in pickletools.genops(written) if isinstance(argument, str)]
    assert [text for text in said if text.startswith("axnet.")] == []
    loaded = pickle.loads(written)
    assert loaded.axnet_report == str(fast.axnet_report)
    assert not hasattr(axnet.restore(loaded), "axnet_report")


def test_within_inference_mode():
    with torch.inference_mode():
        fast = axnet.accelerate(pcam(), example=torch_image, time=False, quiet=True)
    assert len(fast.axnet_report.replaced) == 1
    fast(torch_image)[0][0].sum().backward()
    assert fast.fc_0.weight.grad is not None


def test_compiled_in_place_is_saved_without_what_was_compiled():
    fast = axnet.accelerate(pcam(), example=torch_image, time=False, quiet=True)
    fast.compile(backend="eager")
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is nets.PcamNet
    assert loaded._compiled_call_impl is None
    twin = copy.deepcopy(fast).train()
    twin(torch_image)
    assert not torch.equal(twin.backbone[1].running_mean, fast.backbone[1].running_mean)


@pytest.mark.parametrize("images", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_of_one_pixel_are_products(images, bias, monkeypatch):
    from axnet.dropin import pixels

    seen = []
    original = pixels._product
    monkeypatch.setattr(pixels, "_product", lambda *a: seen.append(1) or original(*a))
    conv = nn.Conv2d(12, 7, 1, bias=bias)
    called = []
    conv.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(images, 12, 1, 1)
    with torch.no_grad(), pixels.of_one_pixel(x):
        torch.testing.assert_close(conv(x), F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)[..., None, None])
        assert (seen, called) == ([1], [1])
        conv(torch.randn(images, 12, 2, 1))  # more pixels, a stride, groups: torch's own
        nn.Conv2d(12, 12, 1, groups=3)(x)
        nn.Conv2d(12, 7, 1, padding=1)(x)
    with pixels.of_one_pixel(x):
        conv(x).sum().backward()
    assert seen == [1]
