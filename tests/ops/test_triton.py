"""The Triton backend without a GPU: the op matrix under the interpreter, and every kernel through the compiler."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from nested import MATRIX, ROOT, poisoned_memory, run_pytest
from opcases import draw, draw_mask, lay_out, plain_gate

import axnet
from axnet import backends
from axnet import functional as AF
from axnet.ops import library

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
not_interpreted = pytest.mark.skipif(
    INTERPRETED, reason="TRITON_INTERPRET=1: the matrix runs here, and nothing compiles"
)


@pytest.mark.slow
@needs_triton
@not_interpreted
def test_matrix_under_the_interpreter(tmp_path):
    # every eleventh case of each test (prime to the sizes of all its parameters): minutes instead of an hour; gradcheck
    # calls an op hundreds of times, and the matrix in float64 holds the same gradients to 1e-10
    environment = {"TRITON_INTERPRET": "1", "AXNET_TEST_BACKENDS": "triton", **poisoned_memory(tmp_path)}
    selected = ("-k", "triton and not gradcheck")
    assert run_pytest(*MATRIX, *selected, **environment, AXNET_TEST_EVERY="11") >= 60
    assert run_pytest(str(ROOT / "tests" / "golden"), **environment) >= 8


class Compiler:
    """Stands for torch.library.wrap_triton: compiles what would be launched, for a GPU that is not there."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.launches: list[str] = []

    def __call__(self, kernel):
        self.kernel = kernel
        return self

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        tuned = isinstance(self.kernel, triton.runtime.Autotuner)
        kernel = self.kernel.fn if tuned else self.kernel
        self.launches.append(kernel.__name__)
        names = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
        names[torch.int32] = "i32"
        configs = [c.all_kwargs() for c in self.kernel.configs] if tuned else [{}]
        for config in configs:
            given = {**options, **config}
            warps = given.pop("num_warps", 4)
            for name in ("num_stages", "num_ctas", "maxnreg"):
                given.pop(name, None)
            bound = inspect.signature(kernel.fn).bind(*args, **given).arguments
            constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr}
            signature, divisible = {}, {}
            for place, (name, value) in enumerate(bound.items()):
                if isinstance(value, torch.Tensor):
                    signature[name] = "*" + names[value.dtype]
                elif name in constants or value == 1:  # Triton makes constants of ones by itself
                    signature[name], constants[name] = "constexpr", value
                else:
                    signature[name] = "i32"
                if name not in constants and (isinstance(value, torch.Tensor) or value % 16 == 0):
                    divisible[(place,)] = [["tt.divisibility", 16]]
            source = ASTSource(kernel, signature, constants, divisible)
            target = GPUTarget("cuda", self.architecture, 32)
            built = triton.compile(source, target=target, options={"num_warps": warps})
            assert built.metadata.shared <= 99 * 1024, (
                f"{kernel.__name__}: {built.metadata.shared} bytes of shared memory"
            )


@pytest.fixture
def compiler(monkeypatch):
    def use(architecture: int) -> Compiler:
        from axnet.kernels import attention_ops, ops, pooling_ops

        assert ops.NAMESPACE == "axnet_triton"
        found = Compiler(architecture)
        monkeypatch.setattr(attention_ops, "wrap_triton", found)
        monkeypatch.setattr(pooling_ops, "wrap_triton", found)
        monkeypatch.setattr(backends.ops, "triton_unavailable", lambda device: None)
        return found

    return use


@pytest.mark.slow
@needs_triton
@not_interpreted
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "layout", "anatomies", "fusion", "maps"),
    [
        (torch.bfloat16, "contiguous", 2, "mean", 1),
        (torch.float32, "channels_last", 2, "mean", 14),
        (torch.float16, "channels_last", 3, "concat", 64),
        (torch.float32, "contiguous", 5, "mean", 20),
        (torch.float64, "contiguous", 1, "mean", 6),
    ],
)
def test_every_kernel_compiles_for_a_gpu(compiler, architecture, dtype, layout, anatomies, fusion, maps):
    used = compiler(architecture)
    shapes = ((1, 32, 33, 32), (2, 13, 7, 7), (3, 1, 1, 1))  # all kernels; odd sizes; ones, which become constants
    for shape in shapes if architecture == 90 else shapes[:1]:
        x = lay_out(draw(shape, dtype), layout).detach().requires_grad_()
        mask = draw_mask((shape[0], anatomies, *shape[2:]), dtype).requires_grad_()
        gate = plain_gate(anatomies, shape[1], dtype)
        z = AF.anatomy_attention(x, mask, gate, training=True, fusion=fusion, backend="triton")
        pooled, prob = AF.pwap(x, draw((maps, shape[1]), dtype).requires_grad_(), backend="triton")
        (z.sum() + pooled.sum() + prob.sum()).backward()
        stats = (torch.zeros(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype))
        with torch.no_grad():
            weight = draw((maps, shape[1]), dtype)
            AF.attention_pwap(x, mask, gate, stats[1], stats[0], *stats, weight, backend="triton")
    assert len(set(used.launches)) == 12, Counter(used.launches)


@needs_triton
@not_interpreted
def test_number_of_launches(compiler, monkeypatch):
    # docs/performance.md, "Triton", has these counts: small shapes cost little but their launches
    used = compiler(90)
    x, mask = draw((2, 32, 7, 7), torch.float32), draw_mask((2, 2, 7, 7), torch.float32)
    gate, stats = plain_gate(2, 32, torch.float32), (torch.zeros(32), torch.ones(32))

    def count(call) -> int:
        before = len(used.launches)
        call()
        return len(used.launches) - before

    with torch.no_grad():
        assert count(lambda: AF.anatomy_attention(x, mask, gate, None, None, *stats, backend="triton")) == 2
        assert count(lambda: AF.pwap(x, torch.zeros(14, 32), backend="triton")) == 2
        assert count(lambda: AF.pwap(x, torch.zeros(1, 32), backend="triton")) == 1
        assert count(lambda: AF.pwap(draw((2, 32, 20, 20), torch.float32), torch.zeros(1, 32), backend="triton")) == 2
        both = (mask, gate, None, None, *stats, torch.zeros(14, 32))
        assert count(lambda: AF.attention_pwap(x, *both, backend="triton")) == 3  # descriptors; tiles; merge

    def training(keep: bool) -> tuple[int, int]:
        monkeypatch.setattr(AF, "keeps_rows", lambda *_: keep)
        leaf, outputs = x.clone().requires_grad_(), []
        call = (leaf, mask, gate)
        forward = count(lambda: outputs.append(AF.anatomy_attention(*call, training=True, backend="triton")))
        return forward, count(lambda: outputs[0].sum().backward())

    assert training(True) == (3, 3)  # as on a GPU
    assert training(False) == (3, 5)  # as on a CPU, where small maps are summed again


TRACE = """
import torch, triton
from torch._dynamo.backends.common import aot_autograd
from triton.backends.compiler import GPUTarget
import axnet.backends
from axnet import nn

class NoDriver:  # tells the target; nothing can be launched
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

def compiler(graph, inputs):
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    print(sum("axnet_triton" in name for name in names), sum("triton_kernel_wrapper" in name for name in names))
    raise NotImplementedError("seen enough")

triton.runtime.driver.set_active(NoDriver())
axnet.backends.ops.triton_unavailable = lambda device: None
attention, pool = nn.AnatomyAwareAttention(8, 2, dropout=0.0, backend="triton"), nn.PCAMHead(8, 3, backend="triton")

def head(x, mask):
    return pool(attention(x, mask))[0]

model = torch.compile(head, backend=aot_autograd(fw_compiler=compiler), fullgraph=True, dynamic=True)
try:
    model(torch.rand(2, 8, 7, 7, requires_grad=True), torch.rand(2, 2, 14, 7))
except Exception as error:
    assert "seen enough" in str(error), error
"""


@pytest.mark.slow
@needs_triton
@not_interpreted
def test_compile_sees_through_to_the_kernels(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRACE], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "4"], done.stdout + done.stderr  # opaque ops, kernels of the forward pass


def test_why_triton_does_not_serve(monkeypatch):
    x, mask = torch.zeros(1, 2, 3, 3, device="cpu"), torch.zeros(1, 1, 3, 3, device="cpu")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(library, "_TRITON_FOUND", True)
    assert backends.why_not("triton", "cuda") is None
    reason = "Triton kernels run on a GPU; TRITON_INTERPRET=1 lets them serve CPU tensors, slowly"
    assert backends.why_not("triton", "cpu") == reason
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot be used: {reason}"):
        AF.masked_pool(x, mask, backend="triton")
    monkeypatch.setattr(library, "_TRITON_FOUND", False)
    assert "triton" not in axnet.available_backends("cuda")
    with pytest.raises(RuntimeError, match=r"'triton' cannot be used: Triton is not installed; install it with"):
        axnet.use_backend("triton")


def test_why_the_native_kernels_do_not_serve_a_gpu(monkeypatch):
    if library.unavailable() is not None:
        pytest.skip("the compiled library is not there")
    if not torch.cuda.is_available():
        reason = backends.why_not("native", "cuda")
        assert reason is None or reason.startswith("axnet was built without CUDA kernels: "), reason
    monkeypatch.setattr(library, "_CUDA_REASON", None)
    assert backends.why_not("native", "cuda") is None
    assert backends.why_not("native", "mps") == "the native kernels run on cpu and cuda, the tensors are on mps"
    monkeypatch.setattr(library, "_CUDA_REASON", "axnet was built without CUDA kernels: missing: nvcc")
    with pytest.raises(RuntimeError, match="'native' cannot be used: axnet was built without CUDA kernels: missing"):
        backends.resolve("native", torch.device("cuda"))


def test_auto_prefers_the_native_kernels_and_triton_to_the_reference(monkeypatch):
    monkeypatch.delenv("AXNET_BACKEND", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(library, "_TRITON_FOUND", True)
    if library.unavailable() is None:
        assert backends.resolve(None, torch.device("cpu")) == "native"
    monkeypatch.setattr(library, "_REASON", "not built")
    monkeypatch.setattr(backends, "_warned", True)
    assert backends.resolve(None, torch.device("cuda")) == "triton"


@needs_triton
def test_importing_axnet_leaves_triton_alone(tmp_path):
    code = "import sys, axnet, axnet.functional, axnet.nn; assert 'triton' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
