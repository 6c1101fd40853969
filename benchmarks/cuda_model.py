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
import itertools
import json
import math
import os
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks import cuda_launches  # noqa: E402
from benchmarks.cuda_resources import find_nvcc  # noqa: E402
from benchmarks.sass.launches import Recorder, buffers_of, find_nvdisasm, host_library, machine_code  # noqa: E402
from benchmarks.sass.machine import SECTOR, SHORT, WRITE, Launch, Machine, TooLongError  # noqa: E402
from benchmarks.sass.program import Program, parse  # noqa: E402

MULTIPROCESSORS, CLOCK = 132, 1.75e9  # of an H200
COPY = cuda_launches.COPY
INSTRUCTIONS = 0.7 * 29.6e12  # thread instructions a second that good kernels reach
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 227 * 1024, 64, 32  # of a multiprocessor
CACHE, FIRST_LEVEL = 50e6, 256 * 1024  # bytes of the second-level cache, of a multiprocessor's own with shared memory
PRODUCT = 6.2  # cycles of a matrix unit for an mma.sync of 4096 (bfloat16) or 2048 (tf32) operations


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
    read_mb: float  # from DRAM
    written_mb: float
    short_pieces: float  # millions of pieces of less than 128 bytes that were read
    cached_mb: float  # from the second-level cache
    in_flight_kb: float  # bytes asked for and not yet there, on a multiprocessor, on average
    sectors_per_request: float
    bank_conflicts: float  # wavefronts of shared memory beyond one, by request
    bytes_ms: float
    issue_ms: float
    tensor_ms: float
    latency_ms: float
    predicted_ms: float


@dataclass
class Times:
    """What bounds a kernel."""

    bytes_ms: float
    issue_ms: float
    tensor_ms: float
    latency_ms: float

    def together(self) -> float:
        return max(self.bytes_ms, self.issue_ms, self.tensor_ms, self.latency_ms)


# -- what it costs


def resident(registers: int, shared_bytes: int, threads: int) -> int:
    """Blocks of a multiprocessor at a time."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // 4 * 4 // warps
    by_shared = SHARED // (-(-(shared_bytes + 1024) // 128) * 128)
    return max(1, min(BLOCKS, WARPS // warps, by_registers, by_shared))


def sample(grid: tuple[int, int], count: int, first: int = 0) -> list[tuple[int, int]]:
    """Blocks from all over the grid, always the same, in runs of four neighbours: patterns of a grid are short."""
    total = grid[0] * grid[1] - first
    run = min(4, total)
    starts = range(first, first + total - run + 1, run)
    chosen = sorted(random.Random(7).sample(starts, min(len(starts), max(1, count // run))))
    return [((start + k) % grid[0], (start + k) // grid[0]) for start in chosen for k in range(run)]


class Part:
    """Blocks of one kind: executed ones, which stand for `blocks` of the grid."""

    def __init__(self, machine: Machine, blocks: int) -> None:
        self.machine, self.blocks = machine, blocks
        self.counts = [(i.threads, i.warps) for i in machine.code]  # the next machine counts anew
        self.cycles = float(machine.clock.reshape(len(machine.blocks), -1).max(1).mean())  # of a block

    @property
    def share(self) -> float:
        return self.blocks / len(self.machine.blocks)

    def threads(self) -> float:
        return self.share * sum(threads for threads, _ in self.counts)

    def warps(self, op: str = "") -> float:
        pairs = zip(self.machine.code, self.counts, strict=True)
        return self.share * sum(warps for i, (_, warps) in pairs if op in ("", i.op))

    def asked(self) -> float:
        return self.share * sum(t.read + t.again + t.written for t in self.machine.memory.traffic.values())


def parts(build: Any, grid: tuple[int, int], blocks: int) -> list[Part]:
    """The grid's blocks by kind: a kernel may give its first blocks a task of their own, which is a short one."""
    total = grid[0] * grid[1]

    def run(count: int, first: int = 0) -> Part:
        machine = build(sample(grid, count, first))
        machine.run()
        return Part(machine, total - first)

    def short(block: int) -> Part | None:
        machine = build([(block % grid[0], block // grid[0])])
        try:
            machine.run(limit=steps // 4)
        except TooLongError:
            return None
        return Part(machine, 1)

    most = run(blocks or 4)
    steps = most.machine.steps
    few = short(0) if steps > 2000 and total > len(most.machine.blocks) else None
    if few is not None:
        last = total  # between those that are known to be short and this one the others begin
        while last - few.blocks > 1:
            middle = (few.blocks + last) // 2
            if short(middle) is None:
                last = middle
            else:
                few.blocks = middle
        few.blocks = last
    count = blocks or (32 if steps < 5000 else 8 if steps < 40_000 else 4)
    if few is not None or count > len(most.machine.blocks):
        most = run(count, few.blocks if few else 0)
    for instruction, (threads, warps) in zip(most.machine.code, most.counts, strict=True):
        instruction.threads, instruction.warps = threads, warps
    return [most, few] if few else [most]


def judge(program: Program, used: list[int], launch: Launch, elements: int, blocks: int) -> tuple[dict[str, Any], Any]:
    registers, static = used
    total = launch.grid[0] * launch.grid[1]
    per = resident(registers, launch.shared_bytes + static, launch.threads)
    at_once = min(per, -(-total // MULTIPROCESSORS))
    rate = COPY / CLOCK / MULTIPROCESSORS / at_once
    room = (FIRST_LEVEL - at_once * (launch.shared_bytes + static + 1024)) // at_once
    caches = {"near": max(0, room), "far": int(CACHE / MULTIPROCESSORS / at_once)}

    def build(chosen: list[tuple[int, int]]) -> Machine:
        return Machine(program, launch, chosen, buffers_of(launch), bandwidth=rate, sharers=at_once, **caches)

    kinds = parts(build, launch.grid, blocks)
    machine = kinds[0].machine
    read = written = short = 0.0
    for base, size in machine.buffers:
        own = [(k.machine.memory.traffic[base], k.share) for k in kinds if base in k.machine.memory.traffic]
        new = sum(t.read * share for t, share in own)
        once = min(1.0, size / max(1.0, new))  # what blocks share comes once: no more than the tensor has
        read += new * once + sum(t.again * share for t, share in own)
        short += once * sum(t.short * share for t, share in own)
        written += min(size, sum(t.written * share for t, share in own))
    warps = sum(k.warps() for k in kinds)
    slots = at_once * MULTIPROCESSORS
    cycles = sum(k.cycles * k.blocks for k in kinds) / slots
    memory = machine.memory
    busy = min(1.0, total / MULTIPROCESSORS)  # few blocks leave multiprocessors idle
    times = Times(
        bytes_ms=(read + short * SHORT + WRITE * written) / COPY * 1e3,
        issue_ms=warps * 32 / INSTRUCTIONS / busy * 1e3,
        tensor_ms=sum(k.warps("HMMA") for k in kinds) * PRODUCT / (4 * MULTIPROCESSORS * CLOCK) / busy * 1e3,
        latency_ms=max(cycles, kinds[0].cycles) / CLOCK * 1e3,
    )
    in_flight = sum(k.asked() for k in kinds) / total * at_once / max(kinds[0].cycles, 1) * 800
    return {
        "kernel": program.name,
        "blocks": total,
        "threads": launch.threads,
        "registers": registers,
        "shared_kb": round((launch.shared_bytes + static + 1024) / 1000, 1),
        "occupancy": round(100 * at_once * launch.threads / 32 / WARPS, 1),
        "instructions": round(sum(k.threads() for k in kinds) / elements, 2),
        "issued": round(warps * 32 / elements, 2),
        "read_mb": round(read / 1e6, 1),
        "written_mb": round(written / 1e6, 1),
        "short_pieces": round(max(0.0, short) / 1e6, 2),
        "cached_mb": round(sum(k.machine.memory.far * k.share for k in kinds) * SECTOR / 1e6, 1),
        "in_flight_kb": round(in_flight / 1e3, 1),
        "sectors_per_request": round(memory.sectors / max(1, memory.requests), 1),
        "bank_conflicts": round(memory.shared_wavefronts / max(1, memory.shared_requests), 2),
        **{name: round(value, 4) for name, value in asdict(times).items()},
        "predicted_ms": round(times.together(), 4),
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
    parser.add_argument("--small", action="store_true", help="all smaller shapes that have a budget, not --shape")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of a grid that are executed; 0: by their length")
    parser.add_argument("--against", type=Path, help="a record of Nsight Compute (benchmarks/results/h200_ncu.csv)")
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree whose csrc/ and axnet/ are judged")
    parser.add_argument("--profile", action="store_true", help="print each instruction with its count")
    parser.add_argument("--verify", action="store_true", help="compare results with the host build's; small shapes")
    parser.add_argument("--out", type=Path, help="JSON of all rows")
    arguments = parser.parse_args()
    if arguments.verify:
        return verify(arguments)
    rows = measure(arguments)
    for shape in dict.fromkeys(r.shape for r in rows):
        print(shape)
        print(summary([r for r in rows if r.shape == shape]))
    if arguments.against:
        print(compare(rows, arguments.against))
    if arguments.out:
        lines = ",\n".join(json.dumps(asdict(r)) for r in rows)
        arguments.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


class Judge:
    """The kernels of a tree, compiled when they are first launched."""

    def __init__(self, source: Path) -> None:
        sys.path.insert(0, str(source))
        nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
        if nvcc is None or nvdisasm is None:
            sys.exit("nvcc and nvdisasm are needed: set CUDA_HOME, or install triton, whose wheel carries nvdisasm.")
        self.source, self.nvcc, self.nvdisasm = source, nvcc, nvdisasm
        self.files = sorted((source / "csrc" / "cuda").glob("*.cu"))
        wrappers = [f for f in (source / "csrc" / "cuda").glob("*.cpp") if f.name != "launch.cpp"]
        self.recorder = Recorder(host_library(source, [*self.files, *wrappers]))
        self.listings: dict[str, Any] = {}
        self.programs: dict[str, tuple[Program, list[int]]] = {}

    def code(self, kernel: str) -> tuple[Program, list[int]]:
        if kernel not in self.programs:
            name = kernel.partition("<")[0]
            likely = [f for f in self.files if re.search(rf"\b{name}\(", f.read_text(encoding="utf-8"))]
            for file in [*likely, *self.files]:
                if kernel not in self.listings:
                    self.listings.update(machine_code(self.source, file, self.nvcc, self.nvdisasm))
            used, listing = self.listings[kernel]
            self.programs[kernel] = (parse(kernel, listing), used)
        return self.programs[kernel]


def measure(arguments: argparse.Namespace) -> list[Row]:
    own = Judge(arguments.source.resolve())
    rows = []
    shapes = cuda_launches.SHAPES[1:] if arguments.small else [tuple(arguments.shape)]
    for shape, dtype, layout in itertools.product(shapes, arguments.dtype, arguments.layout):
        torch.manual_seed(0)
        calls = cuda_launches.calls(shape, layout, cuda_launches.DTYPES[dtype])
        for name, call in calls.items():
            for launch in own.recorder(call) if arguments.name in name else []:
                if arguments.kernel not in launch.kernel:
                    continue
                started = time.monotonic()
                program, used = own.code(launch.kernel)
                result, machine = judge(program, used, launch, math.prod(shape), arguments.blocks)
                rows.append(Row(name, dtype, layout, shape=shape, **result))
                print(line(rows[-1]), f"[{time.monotonic() - started:.1f} s, {machine.steps} steps]", flush=True)
                if arguments.profile:
                    print(profile(program))
    return rows


def verify(arguments: argparse.Namespace) -> None:
    """Execute every block of every launch, and compare with what the host build of the same kernels computes."""
    own = Judge(arguments.source.resolve())
    record = os.environ.pop("AXNET_RECORD_LAUNCHES")
    wrong = 0
    for dtype, layout in itertools.product(arguments.dtype, arguments.layout):
        torch.manual_seed(0)
        calls = cuda_launches.calls(tuple(arguments.shape), layout, cuda_launches.DTYPES[dtype])
        for name, call in calls.items():
            if arguments.name not in name:
                continue
            expected = call()
            os.environ["AXNET_RECORD_LAUNCHES"] = record
            launches = own.recorder(call)
            del os.environ["AXNET_RECORD_LAUNCHES"]
            for launch in launches:
                program, _ = own.code(launch.kernel)
                blocks = [(x, y) for y in range(launch.grid[1]) for x in range(launch.grid[0])]
                for at in range(0, len(blocks), 16):
                    Machine(program, launch, blocks[at : at + 16], buffers_of(launch), exact=True).run()
            worst = 0.0
            for got, right in zip(own.recorder.kept, expected, strict=True):
                if right.numel():
                    scale = right.double().abs().max().clamp_min(1e-30)
                    worst = max(worst, float((got.double() - right.double()).abs().max() / scale))
            bound = 1e-2 if dtype == "bfloat16" else 1e-5
            wrong += not worst <= bound
            verdict = "agrees" if worst <= bound else "DIFFERS"
            print(f"{name:<18} {dtype:<8} {layout:<13} {len(launches)} launches, difference {worst:.1e}  {verdict}")
    if wrong:
        sys.exit(f"{wrong} passes differ")


def passes(rows: list[Row]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Instructions an element and predicted percent of a copy's bandwidth, by pass, dtype and layout."""
    found: dict[tuple[str, str, str], tuple[float, float]] = {}
    for key in dict.fromkeys((r.name, r.dtype, r.layout) for r in rows):
        mine = [r for r in rows if (r.name, r.dtype, r.layout) == key]
        size = np.prod(mine[0].shape) * (2 if key[1] == "bfloat16" else 4) * cuda_launches.MAPS[key[0]]
        share = 100 * size / COPY / sum(r.predicted_ms / 1e3 for r in mine)
        found[key] = (round(sum(r.issued for r in mine), 2), round(float(share), 1))
    return found


def within(key: tuple[str, str, str], found: tuple[float, float], side: int) -> bool:
    """Whether a pass keeps its budget; small maps may execute twice as many instructions."""
    most, least = (values[key[1] == "float32"] for values in cuda_launches.BUDGETS[key[0]])
    return found[0] <= most * (1 if side > 7 else 2) and (side <= 7 or found[1] >= least)


def summary(rows: list[Row]) -> str:
    lines = []
    for key, found in passes(rows).items():
        most, least = (values[key[1] == "float32"] for values in cuda_launches.BUDGETS[key[0]])
        verdict = "within" if within(key, found, rows[0].shape[2]) else "OVER"
        lines.append(
            f"{key[0]:<18} {key[1]:<8} {key[2]:<13} {found[0]:>7} instructions an element (budget {most})  "
            f"{found[1]:>5} % of a copy (budget {least} %)  {verdict}"
        )
    return "\n".join(lines)


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
        f"occ {r.occupancy:>4} %  {r.instructions:>6} ({r.issued:>6}) instr/el  MB read {r.read_mb:>6} "
        f"written {r.written_mb:>6} cached {r.cached_mb:>6}, {r.short_pieces} M short pieces  "
        f"flight {r.in_flight_kb:>5} KB  sectors {r.sectors_per_request:>4}  banks {r.bank_conflicts:>4}  "
        f"bytes {r.bytes_ms:.3f} issue {r.issue_ms:.3f} tensor {r.tensor_ms:.3f} latency {r.latency_ms:.3f} "
        f"-> {r.predicted_ms:.3f} ms"
    )


if __name__ == "__main__":
    main()
