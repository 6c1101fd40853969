"""accelerate against the published form of what it replaces: PCAM's head, ThoraX-PriorNet's 15 gates.

`python benchmarks/dropin.py [--batch 8] [--out FILE]`: ratios of interleaved runs, evaluation and training, of what
autograd keeps for the backward pass, and of the memory that a training step needs at its peak. The networks are those
of tests/dropin, written from the published structure. On a machine that others use too, `--clock process` takes the
process's own time on the processor (with OMP_NUM_THREADS=1, the only thread's).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "dropin"))

import networks

import axnet
from axnet.bench.timing import seconds_of
from axnet.report import environment

M_MMAP_THRESHOLD = -3  # of malloc.h


class PcamHead(nn.Module):
    """PCAM's loop over the classes, without a backbone."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = networks.PcamPool()
        self.classifiers = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, maps = [], []
        for classifier in self.classifiers:
            maps.append(classifier(x))
            logits.append(classifier(self.pool(x, maps[-1])).flatten(1))
        return torch.cat(logits, 1), torch.cat(maps, 1)


class PriorHead(nn.Module):
    """15 gates on one X, each before an average and a classifier of its own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(networks.PriorGate(channels) for _ in range(heads))
        self.classifier = nn.ModuleList(nn.Linear(channels, 1) for _ in range(heads))

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        logits = []
        for i, (attention, classifier) in enumerate(zip(self.attention, self.classifier, strict=True)):
            z = attention(x, masks[:, i : i + 1])
            logits.append(classifier(F.adaptive_avg_pool2d(z, 1).flatten(1)))
        return torch.cat(logits, 1)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def step(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> None:
    model.train(training)
    if not training:
        with torch.no_grad():
            model(*inputs)
        return
    model.zero_grad(set_to_none=True)
    x = inputs[0].detach().requires_grad_()
    first(model(x, *inputs[1:])).sum().backward()


def taken(call: Callable[[], object], device: str, clock: str) -> float:
    """Seconds of a call, by the wall's clock or the process's."""
    if clock == "wall":
        return seconds_of(call, device)
    start = time.process_time()
    call()
    return time.process_time() - start


def peak(model: nn.Module, inputs: tuple[Tensor, ...], device: str) -> int:
    """Bytes that a training step needs at its peak, gradients included, beyond what was there before it."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs, training=True)
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)  # what is freed goes back at once: the peak is of what lives
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high water mark begins here
    before = resident("VmRSS")
    step(model, inputs, training=True)
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's own largest
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def kept(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, without parameters and inputs."""
    model.train()
    model.zero_grad(set_to_none=True)
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *inputs)}
    held: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            alive.append(t)  # so that no address is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        first(model(inputs[0].detach().requires_grad_(), *inputs[1:]))
    return sum(held.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prior-batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    cases: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
        "PCAM, 14 classes, 1024 x 16 x 16": (PcamHead(1024, 14), (options.batch, 1024, 16, 16), 0),
        "PCAM, 14 classes, 1024 x 32 x 32": (PcamHead(1024, 14), (options.batch, 1024, 32, 32), 0),
    }
    gates = PriorHead(1024, 15)
    cases |= {f"15 gates, {n} x 1024 x 48 x 48": (gates, (n, 1024, 48, 48), 15) for n in options.prior_batch}
    rows = []
    for name, (published, shape, masks) in cases.items():
        if options.only not in name:
            continue
        published = published.to(options.device)
        x = torch.randn(shape, device=options.device)
        mask = (torch.rand(shape[0], masks, *shape[2:], device=options.device),) if masks else ()
        little = tuple(t[..., :8, :8] for t in (x, *mask))  # what is computed does not depend on the size
        fast = axnet.accelerate(published, example=little, time=False, verify=False, quiet=True)
        row: dict[str, object] = {
            "case": name,
            "batch": shape[0],
            "replaced": [r.what for r in fast.axnet_report.replaced],
        }
        for training in (False, True):
            times: dict[str, list[float]] = {"published": [], "axnet": []}
            for turn in range(options.rounds + 1):
                for form, model in (("published", published), ("axnet", fast)):
                    spent = taken(partial(step, model, (x, *mask), training), options.device, options.clock)
                    if turn:  # the first warms up
                        times[form].append(spent)
            ratio = statistics.median(times["published"]) / statistics.median(times["axnet"])
            row["training" if training else "eval"] = round(ratio, 1)
        for what, measure in (("kept for backward", kept), ("peak of a step", partial(peak, device=options.device))):
            both = [measure(model, (x, *mask)) for model in (published, fast)]
            row[f"{what}, MB"] = [round(b / 1e6) for b in both]
            row[f"{what}, published / axnet"] = round(both[0] / both[1], 1)
        print(json.dumps(row), flush=True)
        rows.append(row)
    if options.out:
        record = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": options.device,
            "clock": options.clock,
            "environment": environment(),
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
