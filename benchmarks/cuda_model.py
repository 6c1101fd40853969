"""A judge of the CUDA kernels that needs no GPU: executed instructions, memory and time of each, from its machine code.

    python benchmarks/cuda_model.py                              every pass at the shape of the device's record
    python benchmarks/cuda_model.py --kernel moments_kernel      one kernel, in every pass that launches it
    python benchmarks/cuda_model.py --pass descriptors --dtype bfloat16 --layout NCHW --shape 256 1024 7 7 --profile

How: nvcc compiles csrc/cuda for sm_90 and nvdisasm prints the machine code. The host code of the ops, compiled by g++,
says what it launches (grid, shared memory, arguments), and benchmarks/sass executes a sample of the blocks, lane by
lane, on the tensors of this process. Counted are executed thread instructions; the time is predicted as

    max(bytes / 4.23 TB/s, instructions / (0.7 x 29.6 T/s), latency)        of an H200

where latency is the clock of a block that runs alone, with the stalls and scoreboards that the code itself carries,
times the blocks that a multiprocessor runs one after the other.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cuda_launches  # noqa: E402
from benchmarks.cuda_resources import find_nvcc  # noqa: E402
from benchmarks.sass.machine import Launch, Machine, writable_memory  # noqa: E402
from benchmarks.sass.program import Program, disassemble, kernel_of, parse  # noqa: E402

MULTIPROCESSORS, CLOCK = 132, 1.75e9  # of an H200
COPY = 4.23e12  # bytes a second, measured on it
INSTRUCTIONS = 0.7 * 29.6e12  # thread instructions a second that good kernels reach
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 227 * 1024, 64, 32  # of a multiprocessor
CACHE = 50e6  # a tensor of more bytes than this is in DRAM when a pass begins


@dataclass
class Row:
    """One kernel of one pass."""

    name: str  # the pass
    dtype: str
    layout: str
    kernel: str
    shape: tuple[int, ...]
    blocks: int
    threads: int
    registers: int
    shared_kb: float
    occupancy: float  # percent
    instructions: float  # executed thread instructions an element of X
    issued: float  # the same with the idle lanes of the warps
    megabytes: float  # from and to DRAM
    in_flight_kb: float  # bytes asked for and not yet there, on a multiprocessor, on average
    sectors_per_request: float
    bank_conflicts: float  # wavefronts of shared memory beyond one, by request
    bytes_ms: float
    issue_ms: float
    latency_ms: float
    predicted_ms: float


# -- what is compiled


def flags(source: Path) -> list[str]:
    includes = [f"-I{source / 'csrc'}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"]):
        includes += ["-isystem", path]
    return ["-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes]


def cache_of(source: Path, word: str, *files: Path) -> Path:
    """A place for what follows from these files."""
    digest = hashlib.sha256(word.encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "cuda_model"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / digest.hexdigest()[:20]


def headers(*folders: Path) -> list[Path]:
    return sorted(p for f in folders for e in ("*.h", "*.cuh") for p in f.rglob(e))


def machine_code(source: Path, file: Path, nvcc: str, nvdisasm: str) -> dict[str, str]:
    """The listing of each kernel of a file, with the registers in its first line."""
    kept = cache_of(source, "sass 3", file, *headers(source / "csrc")).with_suffix(".json")
    if not kept.exists():
        cubin = kept.with_suffix(".cubin")
        command = [nvcc, "-cubin", str(file), "-o", str(cubin), "-O3", "--expt-relaxed-constexpr", "-arch=sm_90"]
        done = subprocess.run([*command, "-Xptxas", "-v", *flags(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{file.name} does not compile for sm_90:\n{done.stderr[-6000:]}")
        used = {}
        for entry in done.stderr.split("Compiling entry function '")[1:]:
            registers, shared = re.search(r"Used (\d+) registers", entry), re.search(r"(\d+) bytes smem", entry)
            used[entry.split("'")[0]] = [int(registers[1]) if registers else 0, int(shared[1]) if shared else 0]
        listings = disassemble(nvdisasm, cubin)
        kept.write_text(json.dumps({k: [used[v.partition("\n")[0]], v] for k, v in listings.items()}))
        cubin.unlink()
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def host_library(source: Path, files: list[Path]) -> Path:
    """The ops with the kernels' host code, which records launches (tests/cuda_host)."""
    host = ROOT / "tests" / "cuda_host"
    shared = headers(source / "csrc", host)
    objects = []

    def compile_one(file: Path) -> Path:
        out = cache_of(source, "host 3", file, *shared).with_suffix(".o")
        if not out.exists():
            command = ["g++", "-x", "c++", "-O0", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas", f"-I{host}"]
            done = subprocess.run(
                [*command, *flags(source), "-UUSE_CUDA", "-c", str(file), "-o", str(out)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{file.name} does not compile for the host:\n{done.stderr[-6000:]}")
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [host / "fibers.cpp", source / "csrc" / "ops.cpp", *files]))
    library = cache_of(source, "library", *objects).with_suffix(".so")
    if not library.exists():
        folders = [f for path in cpp_extension.library_paths() for f in (f"-L{path}", f"-Wl,-rpath,{path}")]
        command = ["g++", "-shared", *map(str, objects), *folders, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
        subprocess.run([*command, "-o", str(library)], check=True)
    return library


# -- what is launched


class Recorder:
    """The launches that calls of the ops make."""

    def __init__(self, library: Path) -> None:
        import importlib.util

        self.release = ctypes.CDLL(str(library)).axnet_host_release
        self.file = ROOT / "build" / "cuda_model" / f"launches.{os.getpid()}"
        os.environ["AXNET_RECORD_LAUNCHES"] = str(self.file)
        spec = importlib.util.spec_from_file_location("axnet._C", library)
        assert spec is not None and spec.loader is not None  # noqa: PT018
        module = importlib.util.module_from_spec(spec)
        sys.modules["axnet._C"] = module
        sys.modules.setdefault("axnet._buildinfo", types.SimpleNamespace(cuda_kernels="no (the judge)"))  # type: ignore[arg-type]
        spec.loader.exec_module(module)
        table = subprocess.run(["nm", "-C", str(library)], capture_output=True, text=True, check=True).stdout
        self.names = {}
        for line in table.splitlines():
            address, _, rest = line.partition(" ")
            name = kernel_of(rest)
            if name and address:
                self.names[int(address, 16)] = name

    def __call__(self, call: Any) -> list[Launch]:
        self.release()
        self.file.write_text("")
        self.kept = call()  # its tensors stay alive while the launches are executed
        launches = []
        for line in self.file.read_text().splitlines():
            offset, blocks, groups, threads, shared, *data = line.split()
            launches.append(
                Launch(
                    self.names[int(offset)],
                    (int(blocks), int(groups)),
                    int(threads),
                    int(shared),
                    bytes.fromhex(data[0] if data else ""),
                )
            )
        self.file.unlink()
        return launches


def buffers_of(launch: Launch) -> list[tuple[int, int]]:
    """Address and bytes of the tensors that the arguments point to."""
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.restype, usable.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    regions = writable_memory()
    found = {}
    for at in range(0, len(launch.arguments) // 8 * 8, 8):
        (address,) = struct.unpack_from("<Q", launch.arguments, at)
        if address % 16 == 0 and any(low + 16 <= address < high for low, high in regions):
            found[address] = min(usable(address), max(high - address for low, high in regions if low <= address < high))
    return sorted(found.items())


# -- what it costs


def resident(registers: int, shared_bytes: int, threads: int) -> int:
    """Blocks of a multiprocessor at a time."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // 4 * 4 // warps
    by_shared = SHARED // (-(-(shared_bytes + 1024) // 128) * 128)
    return max(1, min(BLOCKS, WARPS // warps, by_registers, by_shared))


def sample(grid: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Blocks from all over the grid, always the same, in runs of four neighbours: patterns of a grid are short."""
    total = grid[0] * grid[1]
    run = min(4, total)
    starts = range(0, total - run + 1, run)
    chosen = sorted(random.Random(7).sample(starts, min(len(starts), max(1, count // run))))
    return [((start + k) % grid[0], (start + k) // grid[0]) for start in chosen for k in range(run)]


def judge(program: Program, used: list[int], launch: Launch, elements: int, blocks: int) -> tuple[dict[str, Any], Any]:
    registers, static = used
    machine = Machine(program, launch, sample(launch.grid, blocks or 4), buffers_of(launch))
    machine.run()
    if not blocks and machine.steps < 40_000 and len(machine.blocks) < launch.grid[0] * launch.grid[1]:
        machine = Machine(program, launch, sample(launch.grid, 32 if machine.steps < 5000 else 8), buffers_of(launch))
        machine.run()
    share = launch.grid[0] * launch.grid[1] / len(machine.blocks)
    threads = sum(i.threads for i in program.code) * share
    warps = sum(i.warps for i in program.code) * share
    per = resident(registers, launch.shared_bytes + static, launch.threads)
    total = launch.grid[0] * launch.grid[1]
    moved = 0.0
    asked = 0.0
    sizes = dict(machine.buffers)
    for base, count in machine.memory.new_bytes.items():
        asked += count
        moved += min(count * share, sizes[base])
    alone = float(machine.clock.reshape(len(machine.blocks), -1).max(1).mean())
    at_once = min(per, -(-total // MULTIPROCESSORS))
    waves = max(1.0, total / (at_once * MULTIPROCESSORS))
    memory = machine.memory
    bytes_s, issue_s = moved / COPY, warps * 32 / INSTRUCTIONS
    latency_s = waves * alone / CLOCK
    # few blocks leave multiprocessors idle
    busy = min(1.0, total / MULTIPROCESSORS)
    issue_s /= busy
    return {
        "kernel": program.name,
        "blocks": total,
        "threads": launch.threads,
        "registers": registers,
        "shared_kb": round((launch.shared_bytes + static + 1024) / 1000, 1),
        "occupancy": round(100 * at_once * launch.threads / 32 / WARPS, 1),
        "instructions": round(threads / elements, 2),
        "issued": round(warps * 32 / elements, 2),
        "megabytes": round(moved / 1e6, 1),
        "in_flight_kb": round(asked / len(machine.blocks) * at_once / max(alone, 1) * 800 / 1e3, 1),
        "sectors_per_request": round(memory.sectors / max(1, memory.requests), 1),
        "bank_conflicts": round(memory.shared_wavefronts / max(1, memory.shared_requests), 2),
        "bytes_ms": round(bytes_s * 1e3, 4),
        "issue_ms": round(issue_s * 1e3, 4),
        "latency_ms": round(latency_s * 1e3, 4),
        "predicted_ms": round(max(bytes_s, issue_s, latency_s) * 1e3, 4),
    }, machine


def profile(program: Program) -> str:
    """The kernel's instructions with how often a lane executed each."""
    total = sum(i.threads for i in program.code)
    lines = [f"{i.at:06x} {i.threads:>10} {100 * i.threads / total:5.1f}  {i.text}" for i in program.code if i.threads]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="kernels whose name contains this")
    parser.add_argument("--pass", dest="name", default="", help="passes whose name contains this")
    parser.add_argument(
        "--dtype", choices=sorted(cuda_launches.DTYPES), nargs="+", default=sorted(cuda_launches.DTYPES)
    )
    parser.add_argument("--layout", choices=cuda_launches.LAYOUTS, nargs="+", default=list(cuda_launches.LAYOUTS))
    parser.add_argument("--shape", type=int, nargs=4, default=cuda_launches.SHAPE)
    parser.add_argument("--blocks", type=int, default=0, help="blocks of a grid that are executed; 0: by their length")
    parser.add_argument("--against", type=Path, help="a record of Nsight Compute (benchmarks/results/h200_ncu.csv)")
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree whose csrc/ and axnet/ are judged")
    parser.add_argument("--profile", action="store_true", help="print each instruction with its count")
    parser.add_argument("--out", type=Path, help="JSON of all rows")
    arguments = parser.parse_args()
    rows = measure(arguments)
    if arguments.against:
        print(compare(rows, arguments.against))
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace) -> list[Row]:
    source = arguments.source.resolve()
    sys.path.insert(0, str(source))
    nvcc = find_nvcc()
    nvdisasm = find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        sys.exit("nvcc and nvdisasm are needed: set CUDA_HOME, or install triton, whose wheel carries nvdisasm.")
    files = sorted((source / "csrc" / "cuda").glob("*.cu"))
    recorder = Recorder(host_library(source, files))
    listings: dict[str, Any] = {}
    programs: dict[str, tuple[Program, list[int]]] = {}

    def code_of(kernel: str) -> tuple[Program, list[int]]:
        if kernel not in programs:
            for file in files:
                if re.search(rf"\b{kernel.partition('<')[0]}\(const", file.read_text()):
                    listings.update(machine_code(source, file, nvcc, nvdisasm))
            if kernel not in listings:
                for file in files:
                    listings.update(machine_code(source, file, nvcc, nvdisasm))
            used, listing = listings[kernel]
            programs[kernel] = (parse(kernel, listing), used)
        return programs[kernel]

    rows = []
    elements = int(np.prod(arguments.shape))
    for dtype in arguments.dtype:
        for layout in arguments.layout:
            torch.manual_seed(0)
            calls = cuda_launches.calls(tuple(arguments.shape), layout, cuda_launches.DTYPES[dtype])
            for name, call in calls.items():
                if arguments.name not in name:
                    continue
                for launch in recorder(call):
                    if arguments.kernel not in launch.kernel:
                        continue
                    started = time.monotonic()
                    program, used = code_of(launch.kernel)
                    result, machine = judge(program, used, launch, elements, arguments.blocks)
                    rows.append(Row(name, dtype, layout, shape=tuple(arguments.shape), **result))
                    print(line(rows[-1]), f"[{time.monotonic() - started:.1f} s, {machine.steps} steps]", flush=True)
                    if arguments.profile:
                        print(profile(program))
    return rows


def compare(rows: list[Row], record: Path) -> str:
    """Counted and predicted over measured, by kernel of the record."""
    with record.open(newline="", encoding="utf-8") as file:
        measured = {(m["pass"], m["dtype"], m["layout"], m["kernel"]): m for m in csv.DictReader(file)}
    lines, counts, times = [], [], []
    for r in rows:
        m = measured.get((r.name, r.dtype, r.layout, r.kernel))
        if m is None:
            continue
        count = float(m["thread_instructions_per_element"])
        counts.append(abs(r.issued - count) <= max(0.15 * count, 0.05))  # the record has one decimal
        times.append(r.predicted_ms / float(m["ms"]))
        lines.append(
            f"{r.name:<18} {r.dtype:<8} {r.layout:<13} {r.kernel:<46} blocks {r.blocks}/{m['blocks']} "
            f"regs {r.registers}/{m['registers']}  {m['thread_instructions_per_element']:>6} -> {r.issued:>7} "
            f"({r.issued / count:.2f})   {m['ms']:>6} -> {r.predicted_ms:.3f} ms ({times[-1]:.2f})"
        )
    near = [sum(counts), sum(abs(v - 1) <= 0.3 for v in times)]
    return "\n".join([*lines, f"{len(lines)} rows: instructions within 15 % {near[0]}, time within 30 % {near[1]}"])


def line(r: Row) -> str:
    return (
        f"{r.name:<18} {r.dtype:<8} {r.layout:<13} {r.kernel:<46} {r.registers:>3} regs {r.shared_kb:>5} KB "
        f"occ {r.occupancy:>4} %  {r.instructions:>6} ({r.issued:>6}) instr/el  {r.megabytes:>6} MB  "
        f"flight {r.in_flight_kb:>5} KB  "
        f"sectors {r.sectors_per_request:>4}  banks {r.bank_conflicts:>4}  "
        f"bytes {r.bytes_ms:.3f} issue {r.issue_ms:.3f} latency {r.latency_ms:.3f} -> {r.predicted_ms:.3f} ms"
    )


def find_nvdisasm() -> str | None:
    from importlib.util import find_spec

    found = shutil.which("nvdisasm")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin:
        found = shutil.which("nvdisasm", path=str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return found


if __name__ == "__main__":
    main()
