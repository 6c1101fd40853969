"""The judge of the CUDA kernels: what it executes is right, what it counts is what an H200 counted, budgets hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import cuda_launches, cuda_model  # noqa: E402
from benchmarks.cuda_resources import find_nvcc  # noqa: E402
from benchmarks.sass import launches, program  # noqa: E402

needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None or launches.find_nvdisasm() is None, reason="nvcc and nvdisasm give the machine code"
)


def test_an_instruction_is_read_whole():
    text = "@!P0 LDG.E.128.CONSTANT R24, desc[UR10][R24.64+UR4+-0x10]"
    ins = program.instruction(0x40, text, 0b000011_010_111_0_0101, {})
    assert (ins.op, ins.mods, ins.guard) == ("LDG", ("E", "128", "CONSTANT"), ("P", 0, True))
    assert ins.operands[1].terms == ((("R64", 24, 1), ("U", 4, 1)), -16)
    assert (ins.stall, ins.write_barrier, ins.read_barrier, ins.waits) == (5, 7, 2, (0, 1))


def test_names_agree_between_compilers():
    assert (
        program.kernel_of("void axnet::cuda::(anonymous namespace)::k_kernel<c10::BFloat16, (int)2, (bool)1>(Plan)")
        == program.kernel_of("axnet::cuda::(anonymous namespace)::k_kernel<c10::BFloat16, 2, true>(Plan)")
        == "k_kernel<BFloat16, 2, 1>"
    )


def test_resident_blocks():
    # of 65,536 registers, 227 KiB of shared memory and 64 warps
    assert cuda_model.resident(registers=128, shared_bytes=0, threads=256) == 2
    assert cuda_model.resident(registers=32, shared_bytes=0, threads=256) == 8
    assert cuda_model.resident(registers=32, shared_bytes=72 * 1024, threads=256) == 3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_model.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1500)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", sorted(cuda_launches.DTYPES))
def test_executed_kernels_give_the_ops_results(dtype):
    # every block of the passes at a small shape, products and stores included, against the reference
    done = run("--verify", "--dtype", dtype, "--shape", "2", "64", "16", "16")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("agrees") >= 2 * len(cuda_launches.MAPS)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("key", cuda_launches.HELD, ids=" ".join)
def test_budgets(key, tmp_path):
    out = tmp_path / "rows.json"
    name, dtype, layout = key
    done = run("--pass", name, "--dtype", dtype, "--layout", layout, "--out", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [cuda_model.Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(out.read_text())]
    found = cuda_model.passes(rows)  # of every pass whose name contains this one
    assert cuda_model.within(key, found[key], 48), f"{found[key]}, {cuda_launches.BUDGETS[name]}"
