"""The ops inside torch: opcheck, torch.compile, torch.export, autocast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from opcases import DEVICE, FUSED, assert_close, draw, draw_mask, lay_out

import axnet
from axnet import nn as axnn
from axnet.ops import calls, fused_ops, has_gated_pwap

needs_native = pytest.mark.skipif("native" not in FUSED, reason="the native kernels are not built")
needs_compiler = pytest.mark.skipif(sys.platform == "win32", reason="torch.compile needs a C++ compiler")


def moments_inputs(layout="contiguous", grad=True):
    x = lay_out(draw((2, 5, 4, 3), torch.float32), layout).detach().requires_grad_(grad)
    return x, draw_mask((2, 2, 4, 3), torch.float32)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_attention(backend, layout):
    ops = fused_ops(backend)
    x, mask = moments_inputs(layout)
    torch.library.opcheck(ops.masked_moments.default, (x, mask, True, True, 1))
    torch.library.opcheck(ops.masked_moments.default, (x.detach(), mask, False, False, 0))
    first = calls.masked_moments(ops, x.detach(), mask, second=True, positions=True, blocks=1)
    gate = torch.rand(2, 2, 5).requires_grad_()
    weight, bias = torch.rand(5).requires_grad_(), torch.rand(5).requires_grad_()
    norm = {"weight": weight, "bias": bias, "running_mean": None, "running_var": None, "eps": 1e-5}
    links = {"concat": False, "save": True, "link": first.link, "coef_link": first.coef_link}
    given = {"x": x.detach(), "mask": mask, "gate": gate, "moments": first.moments, "mass": first.mass, **norm, **links}
    torch.library.opcheck(ops.gate_norm.default, (), given)
    out = calls.GateNorm(*(t.detach() for t in calls.gate_norm(ops, **given)))
    given = {
        "grad_z": out.z,
        "x": x.detach(),
        "mask": mask,
        "gate": gate.detach(),
        "mass": first.mass,
        "weight": weight.detach(),
        **{"mean": out.mean, "var": out.var, "saved": out.saved},
        **{"eps": 1e-5, "batch_statistics": True, "concat": False},
    }
    torch.library.opcheck(ops.gate_norm_backward.default, (), given)
    torch.library.opcheck(ops.gate_norm_backward.default, (), {**given, "saved": out.saved[:0]})
    grads = {"grad_descriptors": torch.rand_like(first.descriptors), "grad_z": out.z}
    coef = calls.gate_norm_backward(ops, **given).coef
    wanted = {"argmax": first.argmax, **grads, "coef": coef, "input_grad": True, "mask_grad": True}
    torch.library.opcheck(ops.masked_moments_backward.default, (x.detach(), mask), wanted)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_pooling(backend, layout):
    ops = fused_ops(backend)
    x, mask = moments_inputs(layout)
    weight, bias = draw((3, 5), torch.float32).requires_grad_(), draw((3,), torch.float32).requires_grad_()
    torch.library.opcheck(ops.pwap.default, (x, weight, bias))
    pooled, prob, logits, norm = (t.detach() for t in ops.pwap(x, weight, bias))
    plain = (x.detach(), weight.detach())
    torch.library.opcheck(ops.pwap_backward.default, (pooled, prob, *plain, logits, norm, pooled, True))
    if has_gated_pwap(backend, torch.device(DEVICE).type):
        vectors = (draw((5,), torch.float32, 1), None, torch.zeros(5), torch.ones(5))
        arguments = (x.detach(), mask, torch.rand(2, 2, 5), *vectors, 1e-5, weight.detach(), bias.detach())
        torch.library.opcheck(ops.gated_pwap.default, arguments)


class Head(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.attention = axnn.AnatomyAwareAttention(8, 2, dropout=0.0, backend=backend)
        self.pool = axnn.PCAMHead(8, 3, backend=backend)

    def forward(self, x, mask):
        return self.pool(self.attention(x, mask))[0]


@pytest.fixture
def no_default_device():
    """Dynamo does not trace every method of a tensor under a default device."""
    before = torch.get_default_device()
    torch.set_default_device(None)
    yield
    if DEVICE != "cpu":
        torch.set_default_device(before)


def heads(backend: str) -> tuple[Head, Head]:
    torch.manual_seed(0)
    expected, actual = Head("reference").to(DEVICE), Head(backend).to(DEVICE)
    actual.load_state_dict(expected.state_dict())
    return expected, actual


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph_with_dynamic_shapes(backend, training, no_default_device):
    expected, actual = heads(backend)
    expected.train(training)
    actual.train(training)
    torch._dynamo.reset()
    compiled = torch.compile(actual, fullgraph=True, dynamic=True)
    for n, h, w in ((2, 7, 7), (3, 9, 5), (4, 16, 12)):
        x, mask = draw((n, 8, h, w), torch.float32), draw_mask((n, 2, 2 * h, w), torch.float32)
        xa, xe = x.clone().requires_grad_(), x.clone().requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if n > 3 else "default"):
            za = compiled(xa, mask)
        ze = expected(xe, mask)
        assert_close("logits", za.detach(), ze.detach(), 1e-4)
        za.square().sum().backward()
        ze.square().sum().backward()
        assert_close("grad_x", xa.grad, xe.grad, 1e-3)
    for (name, a), e in zip(actual.named_buffers(), expected.buffers(), strict=True):
        assert_close(name, a, e, 1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_export(backend):
    expected, actual = heads(backend)
    expected.eval()
    actual.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    x, mask = draw((3, 8, 7, 7), torch.float32), draw_mask((3, 2, 14, 14), torch.float32)
    program = torch.export.export(actual, (x, mask), dynamic_shapes=({0: batch}, {0: batch}))
    assert any("axnet" in str(node.target) for node in program.graph.nodes)
    assert_close("logits", program.module()(x[:2], mask[:2]).detach(), expected(x[:2], mask[:2]).detach(), 1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_autocast_follows_the_type_of_the_features(backend):
    _, head = heads(backend)
    x, mask = draw((2, 8, 7, 7), torch.float32), draw_mask((2, 2, 7, 7), torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = head.attention(x.to(dtype), mask)
            pooled, prob = axnn.PWAP(8, 2, backend=backend)(z)
        assert z.dtype == pooled.dtype == prob.dtype == dtype
        z.sum().backward()
        assert head.attention.hidden_weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", FUSED)
def test_modules_in_half_precision(backend):
    head = Head(backend).bfloat16()
    x = draw((2, 8, 7, 7), torch.bfloat16).requires_grad_()
    z = head(x, draw_mask((2, 2, 7, 7), torch.float32))
    z.sum().backward()
    assert z.dtype == x.grad.dtype == torch.bfloat16


SCRIPT = """
import torch, axnet
from axnet import functional as AF
torch.manual_seed(0)
x, mask = torch.randn(2, 70, 9, 11), torch.rand(2, 2, 9, 11)
for layout in (torch.contiguous_format, torch.channels_last):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        xs = x.to(dtype).contiguous(memory_format=layout).detach().requires_grad_()
        xr = x.to(dtype).double().detach().requires_grad_()
        gate = lambda p: torch.sigmoid(p.avg[:, None] + p.masked_max)
        weight = torch.randn(14, 70)
        total = []
        for t, backend in ((xs, "native"), (xr, "reference")):
            z = AF.anatomy_attention(t, mask.to(t.dtype), gate, training=True, backend=backend)
            pooled, prob = AF.pwap(z, weight, backend=backend)
            (pooled.sum() + prob.sum()).backward()
            total.append((pooled.detach().double(), t.grad.double()))
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 1e-2}[dtype]
        for a, e in zip(*total):
            assert (a - e).abs().max() <= tolerance * e.abs().max(), (dtype, layout, (a - e).abs().max(), e.abs().max())
print(torch.ops.axnet.cpu_instruction_set())
"""


def run_python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, away from the sources, so that the installed package is imported."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa, tmp_path):
    done = run_python(SCRIPT, tmp_path, AXNET_CPU_ISA=isa)
    if done.returncode and f"AXNET_CPU_ISA is '{isa}', this machine runs" in done.stderr:
        pytest.skip(f"this machine does not run {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


@needs_native
def test_unknown_instruction_set_is_refused(tmp_path):
    done = run_python(SCRIPT, tmp_path, AXNET_CPU_ISA="sse9")
    assert done.returncode != 0
    assert "AXNET_CPU_ISA is 'sse9', this machine runs" in done.stderr


def test_import_is_light(tmp_path):
    code = (
        "import torch, time, sys; t = time.perf_counter(); import axnet, axnet.nn; "
        "heavy = {'pandas', 'monai', 'lightning', 'matplotlib', 'sklearn', 'torchvision', 'timm'} & set(sys.modules); "
        "assert not heavy, heavy; print(time.perf_counter() - t)"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_backends_are_chosen_and_refused_by_name(monkeypatch):
    x = draw((1, 3, 4, 4), torch.float32)
    mask = draw_mask((1, 1, 4, 4), torch.float32)
    with pytest.raises(ValueError, match=r"backend is 'cuda', expected one of"):
        axnet.functional.masked_pool(x, mask, backend="cuda")
    with pytest.raises(ValueError, match=r"use_backend's name is 'fast'"):
        axnet.use_backend("fast")
    monkeypatch.setenv("AXNET_BACKEND", "quick")
    with pytest.raises(ValueError, match=r"AXNET_BACKEND is 'quick'"):
        axnet.functional.masked_pool(x, mask)
    with axnet.use_backend("reference"):
        assert axnet.functional.masked_pool(x.requires_grad_(), mask).avg.grad_fn.name() != "None"
    if "triton" not in axnet.available_backends(x.device.type):
        with pytest.raises(RuntimeError, match="backend 'triton' cannot be used"):
            axnet.functional.masked_pool(x, mask, backend="triton")


def test_info_names_every_backend():
    info = axnet.info()
    assert {"native (cpu)", "triton (cpu)", "reference (cpu)"} <= set(info["backends"])
    assert info["backends"]["reference (cpu)"] == "available"
    assert all(info["backends"].values())
