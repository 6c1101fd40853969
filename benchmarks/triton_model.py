"""The judge of benchmarks/cuda_model.py for the Triton kernels: Triton compiles them for sm_90, no GPU is needed.

    python benchmarks/triton_model.py                                 every pass at the shape of the device's record
    python benchmarks/triton_model.py --pass moments --dtype bfloat16 --layout NCHW --shape 64 1024 16 16
    python benchmarks/triton_model.py --verify --shape 2 64 16 16     executes every program and compares with PyTorch

A launch that an op makes is compiled with its own arguments and executed, a sample of its programs or all of them, on
the tensors of this process.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks import cuda_launches, cuda_model  # noqa: E402
from benchmarks.sass.launches import buffers_of, find_nvdisasm  # noqa: E402
from benchmarks.sass.machine import Launch, Machine  # noqa: E402
from benchmarks.sass.program import Program, disassemble, parse  # noqa: E402

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES[torch.int32] = "i32"


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], architecture: int = 90) -> tuple[Any, bytes]:
    """The kernel compiled as this launch would compile it, and the bytes of the arguments that are left."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    given = dict(options)
    chosen = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    bound = inspect.signature(kernel.fn).bind(*args, **given).arguments
    constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr}
    signature, divisible, packed = {}, {}, b""
    for place, (name, value) in enumerate(bound.items()):
        if name in constants or (not isinstance(value, Tensor) and value == 1):  # Triton makes constants of ones
            signature[name], constants[name] = "constexpr", value
            continue
        wide = isinstance(value, Tensor) or not -(2**31) <= value < 2**31
        signature[name] = "*" + TYPES[value.dtype] if isinstance(value, Tensor) else "i64" if wide else "i32"
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if number % 16 == 0:
            divisible[(place,)] = [["tt.divisibility", 16]]
        packed += b"\0" * (-len(packed) % (8 if wide else 4)) + struct.pack("<q" if wide else "<i", number)
    source = ASTSource(kernel, signature, constants, divisible)
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=chosen)
    return built, packed + b"\0" * (-len(packed) % 8) + b"\0" * 16  # and two scratch areas that nobody uses


def machine_code(built: Any) -> tuple[Program, list[int]]:
    """The parsed code of a compiled kernel, its registers and its static shared memory."""
    nvdisasm = find_nvdisasm()
    assert nvdisasm is not None, "nvdisasm comes with triton"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        ((name, listing),) = disassemble(nvdisasm, Path(file.name)).items()
        tool = str(Path(nvdisasm).with_name("cuobjdump"))
        used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+)", used)
    assert found is not None, used
    return parse(name, listing), [int(found[1]), 0]


class Launches:
    """Stands for torch.library.wrap_triton: `use` is called with every launch, its code and its resources."""

    def __init__(self, use: Callable[[Launch, Program, list[int]], None]) -> None:
        self.use = use
        self.codes: dict[Any, tuple[Program, list[int]]] = {}

    def __call__(self, kernel: Any) -> Any:
        self.kernel = kernel
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            built, packed = compiled(self.kernel, args, options)
            if built.hash not in self.codes:
                self.codes[built.hash] = machine_code(built)
            shape = (grid[0], grid[1] if len(grid) > 1 else 1)
            threads, shared = built.metadata.num_warps * 32, built.metadata.shared
            self.use(Launch(built.metadata.name, shape, threads, shared, packed), *self.codes[built.hash])

        return launch

    def __enter__(self) -> None:
        from axnet.kernels import attention_ops, pooling_ops

        from axnet import ops

        self.kept = attention_ops.wrap_triton, ops.triton_unavailable
        attention_ops.wrap_triton = pooling_ops.wrap_triton = self
        ops.triton_unavailable = lambda device: None

    def __exit__(self, *_: object) -> None:
        from axnet.kernels import attention_ops, pooling_ops

        from axnet import ops

        attention_ops.wrap_triton, ops.triton_unavailable = self.kept
        pooling_ops.wrap_triton = attention_ops.wrap_triton


def execute(launch: Launch, program: Program, _: list[int]) -> None:
    """Every program of the launch, with its stores."""
    blocks = [(x, y) for y in range(launch.grid[1]) for x in range(launch.grid[0])]
    for at in range(0, len(blocks), 16):
        Machine(program, launch, blocks[at : at + 16], buffers_of(launch), exact=True).run()


def measure(arguments: argparse.Namespace) -> list[cuda_model.Row]:
    rows: list[cuda_model.Row] = []
    shape = tuple(arguments.shape)
    for dtype, layout in itertools.product(arguments.dtype, arguments.layout):
        name = ""

        def count(launch: Launch, program: Program, used: list[int]) -> None:
            if name:  # noqa: B023 used at once; not one of the launches that make the arguments
                result, _ = cuda_model.judge(program, used, launch, int(np.prod(shape)), arguments.blocks)
                rows.append(cuda_model.Row(name, dtype, layout, shape=shape, **result))  # noqa: B023 used at once
                print(cuda_model.line(rows[-1]), flush=True)

        with Launches(count):
            from axnet.bench.measure import passes

            for wanted, (_, call) in passes(shape, layout, cuda_launches.DTYPES[dtype], "cpu", "triton").items():
                name = wanted if arguments.name in wanted else ""
                if name:
                    call()
    return rows


def verify(arguments: argparse.Namespace) -> None:
    """Forward and backward of A3 and PWAP by the machine code, against the reference."""
    wrong = 0
    for dtype, layout in itertools.product(arguments.dtype, arguments.layout):
        for task in ("a3", "pwap 1", "pwap 14"):
            results = [forms(task, tuple(arguments.shape), layout, dtype, name) for name in ("triton", "reference")]
            worst = 0.0
            for got, right in zip(*results, strict=True):
                scale = right.double().abs().max().clamp_min(1e-30)
                worst = max(worst, float((got.double() - right.double()).abs().max() / scale))
            bound = 3e-2 if dtype == "bfloat16" else 1e-4
            wrong += not worst <= bound
            verdict = "agrees" if worst <= bound else "DIFFERS"
            print(f"{task:<8} {dtype:<8} {layout:<13} difference {worst:.1e}  {verdict}", flush=True)
    if wrong:
        sys.exit(f"{wrong} tasks differ")


def forms(task: str, shape: tuple[int, ...], layout: str, dtype: str, backend: str) -> list[Tensor]:
    """Results and gradients of a task by one backend."""
    from axnet import functional

    torch.manual_seed(0)
    n, c, h, w = shape
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    wide = torch.float32 if backend == "triton" else torch.float64
    kind = cuda_launches.DTYPES[dtype]
    x = torch.randn(shape).to(kind).to(kind if backend == "triton" else wide).contiguous(memory_format=form)
    x.requires_grad_()
    mask, gate = torch.rand(n, 2, h, w), torch.randn(n, 2, c).sigmoid().to(wide)
    weight = (torch.randn(int(task.split()[1]) if task != "a3" else 1, c) / c**0.5).to(wide).requires_grad_()
    slope = torch.randn(shape)
    with Launches(execute):
        if task == "a3":
            gate.requires_grad_()
            z = functional.anatomy_attention(x, mask, lambda pool: gate, training=True, backend=backend)
            z.backward(slope.to(z.dtype).contiguous(memory_format=form))
            found = [z, x.grad, gate.grad]
        else:
            pooled, prob = functional.pwap(x, weight, None, backend=backend)
            pooled.backward(torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape).to(pooled.dtype))
            found = [pooled, prob, x.grad, weight.grad]
    return [t.detach() for t in found if t is not None]


def record(rows: list[cuda_model.Row]) -> dict[str, Any]:
    """The rows as a record of passes, for benchmarks/choose_backend.py."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found = []
    for name, dtype, layout in dict.fromkeys((r.name, r.dtype, r.layout) for r in rows):
        mine = [r for r in rows if (r.name, r.dtype, r.layout) == (name, dtype, layout)]
        median = round(sum(r.predicted_ms for r in mine), 4)
        row = {"pass": name, "backend": "triton", "dtype": f"torch.{dtype}", "layout": layout, "median": median}
        found.append({**row, "instructions": round(sum(r.issued for r in mine), 2)})
    return {
        "predicted": True,
        "device": "an H200, by benchmarks/triton_model.py",
        "commit": commit.stdout.strip() or "unknown",
        "passes": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = sorted(cuda_launches.DTYPES)
    parser.add_argument("--pass", dest="name", default="", help="passes whose name contains this")
    parser.add_argument("--dtype", choices=kinds, nargs="+", default=kinds)
    parser.add_argument("--layout", choices=cuda_launches.LAYOUTS, nargs="+", default=list(cuda_launches.LAYOUTS))
    parser.add_argument("--shape", type=int, nargs=4, default=cuda_launches.SHAPE)
    parser.add_argument(
        "--blocks", type=int, default=0, help="programs of a grid that are executed; 0: by their length"
    )
    parser.add_argument("--verify", action="store_true", help="execute all and compare with the reference")
    parser.add_argument("--out", type=Path, help="a record of predicted passes, for benchmarks/choose_backend.py")
    arguments = parser.parse_args()
    if arguments.verify:
        return verify(arguments)
    rows = measure(arguments)
    print(cuda_model.summary(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(record(rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
