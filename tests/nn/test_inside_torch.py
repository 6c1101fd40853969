"""The modules inside torch's other tools: torch.func, fake and meta tensors, hooks, wrappers, other normalisations, fx,
export; the right value each time, or one sentence."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from opcases import BACKENDS, DEVICE, FUSED, draw, draw_mask
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import axnet
from axnet import functional as AF
from axnet import reference
from axnet.models import AnatomyXNet
from axnet.nn import PWAP, AnatomyAwareAttention, MaskedAttention, PCAMHead
from axnet.nn.masked_attention import average_heads

C, A = 8, 2


def features(n: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw((n, C, 5, 4), dtype), draw_mask((n, A, 5, 4), dtype)


def attention(backend: str | None = None, **options) -> AnatomyAwareAttention:
    torch.manual_seed(0)
    return AnatomyAwareAttention(C, A, dropout=0.0, backend=backend, dtype=torch.float64, **options)


MODULES = {
    "A3": lambda backend: attention(backend),
    "A3 concat": lambda backend: attention(backend, fusion="concat"),
    "MaskedAttention": lambda backend: MaskedAttention(C, dropout=0.0, backend=backend, dtype=torch.float64),
    "PWAP": lambda backend: PWAP(C, 3, backend=backend, dtype=torch.float64),
    "PCAMHead": lambda backend: PCAMHead(C, 3, backend=backend, dtype=torch.float64),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """A module as it is, the same on the reference, and arguments."""
    torch.manual_seed(0)
    module = MODULES[name](None).eval()
    plain = MODULES[name]("reference").eval()
    plain.load_state_dict(module.state_dict())
    x, mask = features()
    return (
        module,
        plain,
        (x, mask[:, : 1 if name == "MaskedAttention" else A]) if "A" in name[:2] or name[0] == "M" else (x,),
    )


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("name", MODULES)
def test_functional_derivatives(name):
    module, plain, arguments = pair(name)
    x, rest = arguments[0], arguments[1:]

    def of(m):
        return lambda v: first(m(v, *rest))

    for transform in (
        lambda f: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f: torch.func.grad(lambda v: f(v).square().sum())(x),
        lambda f: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
        lambda f: torch.func.jacrev(lambda v: f(v).sum((0, -1)))(x),
        lambda f: torch.func.jacfwd(lambda v: f(v).sum())(x),
        lambda f: torch.func.hessian(lambda v: f(torch.cat((v, x[:, 2:]), 1)).square().sum())(x[:, :2]),
    ):
        actual = transform(of(module))
        assert actual.abs().max() > 0
        torch.testing.assert_close(actual, transform(of(plain)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(of(module)(dual)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(of(plain), (x,), (torch.ones_like(x),))[1])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("grad", [True, False])
def test_vmap_and_gradients_per_sample(name, grad):
    module, plain, arguments = pair(name)
    with torch.set_grad_enabled(grad):
        alone = torch.func.vmap(lambda *one: first(module(*(t[None] for t in one)))[0])(*arguments)
        torch.testing.assert_close(alone, first(plain(*arguments)))

    def loss(parameters, *one):
        return first(functional_call(module, parameters, tuple(t[None] for t in one))).square().sum()

    axes = (None, *(0 for _ in arguments))
    per_sample = torch.func.vmap(torch.func.grad(loss), axes)(dict(module.named_parameters()), *arguments)
    first(plain(*arguments)).square().sum().backward()
    for key, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(per_sample[key].sum(0), parameter.grad)


@pytest.mark.parametrize("backend", FUSED)
def test_a_named_backend_says_that_it_has_no_transform(backend):
    x, _ = features()
    with pytest.raises(RuntimeError, match=r"torch.func and forward-mode derivatives need 'reference' or 'auto'"):
        torch.func.grad(lambda v: AF.pwap(v, torch.ones(1, C, dtype=v.dtype), backend=backend)[0].sum())(x)


@pytest.mark.skipif(DEVICE != "cpu", reason="shapes alone")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_meta_and_fake_tensors(name, training, grad):
    module, _, arguments = pair(name)
    module.train(training)
    with torch.set_grad_enabled(grad):
        expected = first(module(*arguments)).shape
        shapes = copy.deepcopy(module).to("meta")(*(t.to("meta") for t in arguments))
        assert first(shapes).shape == expected
        with FakeTensorMode() as mode:
            fake = MODULES[name](None).train(training)(*(mode.from_tensor(t) for t in arguments))
        assert first(fake).shape == expected


@pytest.mark.skipif(DEVICE != "cpu", reason="shapes alone")
def test_a_whole_model_on_meta_and_fake_tensors():
    with torch.device("meta"), torch.no_grad():
        net = AnatomyXNet(3, backbone="tiny", reduction=0.25).eval()
        assert net(torch.empty(2, 1, 64, 64), torch.empty(2, 2, 64, 64)).logits.shape == (2, 3)
    with FakeTensorMode(), torch.no_grad():
        net = AnatomyXNet(3, backbone="tiny", reduction=0.25).eval()
        assert net(torch.randn(2, 1, 64, 64), torch.rand(2, 2, 64, 64)).logits.shape == (2, 3)


HOOKS = {
    "forward": lambda m, seen: m.register_forward_hook(lambda *a: seen.append(1)),
    "pre": lambda m, seen: m.register_forward_pre_hook(lambda *a: seen.append(1)),
    "patched": lambda m, seen: patch(m, seen),
}


def patch(module: nn.Module, seen: list[int]) -> None:
    own = module.forward

    def forward(*arguments):
        seen.append(1)
        return own(*arguments)

    module.forward = forward


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_hooks_fire_in_inference_as_in_training(kind, fusion):
    net = AnatomyXNet(3, backbone="tiny", reduction=0.25, fusion=fusion).eval()
    image, mask = draw((2, 1, 64, 64), torch.float32), draw_mask((2, 2, 64, 64), torch.float32)
    expected = net(image, mask).logits.detach()
    seen: list[int] = []
    for part in [*net.attention, *net.pooling, *(a.norm for a in net.attention), net.classifier, net.head_dropout]:
        HOOKS[kind](part, seen)
    counts = []
    for grad in (True, False):
        seen.clear()
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(image, mask).logits, expected, rtol=1e-4, atol=1e-5)
        counts.append(len(seen))
    assert counts == [8, 8]


def test_global_hooks_and_hooks_that_change_the_output():
    x, mask = features()
    module, pooling = attention().eval(), PWAP(C, 2, dtype=torch.float64)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, out: seen.append(type(m).__name__))
    try:
        with torch.no_grad():
            module.pool(x, mask, pooling)
    finally:
        handle.remove()
    assert seen == ["BatchNorm2d", "AnatomyAwareAttention", "PWAP"]
    module.norm.register_forward_hook(lambda m, a, out: out * 0)
    with torch.no_grad():
        assert module(x, mask).abs().max() == 0
        assert module.average(x, mask).abs().max() == 0


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HalvedBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


NORMS = {
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(2, c),
    "layer": lambda c: LayerNorm2d(c),
    "identity": lambda c: nn.Identity(),
    "subclass": lambda c: HalvedBatchNorm(c),
    "not affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "not tracking": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "sequence": lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()),
    "wrapped": lambda c: nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(c), "weight", dim=None),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fusion", ["mean", "concat"])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_another_normalisation(backend, fusion, kind, training):
    module = attention(backend, fusion=fusion)
    channels = module.out_channels
    torch.manual_seed(3)
    module.norm = NORMS[kind](channels).double()
    norm = copy.deepcopy(module.norm).train(training)
    module.train(training)
    x, mask = features(3)
    x.requires_grad_()
    y = reference.blend(x, mask, attention("reference", fusion=fusion).gate(reference.masked_pool(x, mask)), fusion)
    expected = norm(y)
    actual = module(x, mask)
    torch.testing.assert_close(actual, expected)
    d = draw(tuple(actual.shape))
    torch.testing.assert_close(*(torch.autograd.grad((z * d).sum(), x)[0] for z in (actual, expected)))
    torch.testing.assert_close(dict(module.norm.named_buffers()), dict(norm.named_buffers()))
    with torch.no_grad():
        again, z = copy.deepcopy(module), module(x, mask)
        torch.testing.assert_close(again.average(x, mask), z.mean((2, 3)))
        pooling = PWAP(channels, 2, backend=backend, dtype=torch.float64)
        again = copy.deepcopy(module)
        torch.testing.assert_close(again.pool(x, mask, pooling)[0], pooling(module(x, mask))[0])


def test_no_normalisation_is_named():
    x, mask = features()
    module = attention(None)
    module.norm = None
    for call in (lambda: module(x, mask), lambda: module.average(x, mask)):
        with pytest.raises(TypeError, match=r"norm is None, expected a module: nn.Identity\(\)"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_without_parameters_in_its_normalisation(backend):
    x, mask = features()
    head = MaskedAttention(C, dropout=0.0, backend=backend, dtype=torch.float64).eval()
    head.bn3 = nn.Identity()
    y = reference.blend(x, mask[:, :1], head.gate(reference.masked_pool(x, mask[:, :1])))
    torch.testing.assert_close(head(x, mask[:, :1]), y)
    torch.testing.assert_close(average_heads([head], x, mask[:, :1])[:, 0], y.mean((2, 3)))


class Adapted(nn.Module):
    """A low-rank adapter as such libraries wrap a layer: its weight is a method's business, not a tensor."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def weight(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Doubled(nn.Module):
    """A wrapper that has no method of what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Tensor) -> Tensor:
        return 2 * self.inner(*arguments)


@pytest.mark.parametrize("num_maps", [1, "classes"])
@pytest.mark.parametrize("grad", [True, False])
def test_wrapped_adapted_and_quantised_parts(num_maps, grad):
    image, mask = draw((2, 1, 64, 64), torch.float32), draw_mask((2, 2, 64, 64), torch.float32)
    net = AnatomyXNet(3, backbone="tiny", reduction=0.25, num_maps=num_maps).eval()
    with torch.set_grad_enabled(grad):
        pooled = net(image, mask).pooled
        net.classifier = Adapted(net.classifier)
        by_layer = net.classifier(pooled)
        logits = by_layer[:, 0] if num_maps == 1 else by_layer.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(net(image, mask).logits, logits)
        net.attention[0] = Doubled(net.attention[0])
        changed = net(image, mask).pooled
        assert not torch.allclose(changed, pooled)
    net = AnatomyXNet(3, backbone="tiny", reduction=0.25, num_maps=num_maps).eval()
    expected = net(image, mask).logits
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(quantised(image, mask).logits, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("training", [False])
def test_export_is_saved_and_loaded(training, tmp_path: Path):
    net = AnatomyXNet(3, backbone="tiny", reduction=0.25).train(training)
    image, mask = draw((2, 1, 64, 64), torch.float32), draw_mask((2, 2, 64, 64), torch.float32)
    torch.export.save(torch.export.export(net, (image, mask)), tmp_path / "net.pt2")
    out = torch.export.load(tmp_path / "net.pt2").module()(image, mask)
    torch.testing.assert_close(out.logits, net(image, mask).logits)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.pooling = attention(), PWAP(C, 2, dtype=torch.float64)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pooled, prob = self.attention.pool(x, mask, self.pooling)
        return pooled.sum(1) + prob.mean()


def test_fx_traces_modules_as_nodes():
    head, (x, mask) = Head().eval(), features()
    traced = torch.fx.symbolic_trace(head)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["attention", "pooling"]
    torch.testing.assert_close(traced(x, mask), head(x, mask))
    for name in MODULES:
        with pytest.raises(TypeError, match=r"cannot be traced by torch.fx.symbolic_trace by itself"):
            torch.fx.symbolic_trace(MODULES[name](None))
    with pytest.raises(TypeError, match=r"x is a torch.fx.Proxy, expected a tensor"):
        torch.fx.symbolic_trace(lambda v: AF.pwap(v, torch.ones(1, C)))


def test_fx_of_a_whole_model():
    net = AnatomyXNet(3, backbone="tiny", reduction=0.25).eval()
    image, mask = draw((2, 1, 64, 64), torch.float32), draw_mask((2, 2, 64, 64), torch.float32)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(image, mask).logits, net(image, mask).logits)


def test_use_backend_is_of_one_thread():
    import threading

    device, seen = torch.device(DEVICE), {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with axnet.use_backend("reference"):
            seen["there"] = axnet.backends.resolve(None, device)
            inside.set()
            done.wait(60)
        seen["after"] = axnet.backends.resolve(None, device)

    before = axnet.backends.resolve(None, device)
    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    assert axnet.backends.resolve(None, device) == before
    with axnet.use_backend("reference"):
        done.set()
        thread.join()
        assert axnet.backends.resolve(None, device) == "reference"
    assert axnet.backends.resolve(None, device) == before
    assert seen == {"there": "reference", "after": before}
