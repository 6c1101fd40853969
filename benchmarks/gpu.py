"""Build, test and measure axnet on a GPU, in one command and one record.

    python benchmarks/gpu.py --out FOLDER

writes FOLDER/gpu.json (device, versions, commit, results; rewritten after every result, so that a run that is cut keeps
what it has) and logs of build and tests beside it. Steps: build, test, sanitize, check, passes, blocks, heads, graph.
The order of the work is that of its importance: --minutes ends the timings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("build", "test", "sanitize", "check", "passes", "blocks", "heads", "graph")
BF16, F32 = torch.bfloat16, torch.float32
LAYOUTS = ("NCHW", "channels_last")


class Report:
    """Results as they come, on disk after each."""

    def __init__(self, folder: Path, device: str, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device, self.deadline = folder, device, time.monotonic() + 60 * minutes
        self.data: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def put(self, name: str, value: Any, many: bool = False) -> None:
        if many:
            self.data.setdefault(name, []).append(value)
        else:
            self.data[name] = value
        (self.folder / "gpu.json").write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(value), flush=True)


def run(report: Report, name: str, command: list[str], timeout: float, **environment: str) -> dict[str, Any]:
    """Run a command with its output in a log; its exit code, seconds and last lines."""
    log, started = report.folder / f"{name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file, timeout=timeout
            )
            code: int | str = done.returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {timeout:.0f} s"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return {"code": code, "seconds": round(time.monotonic() - started, 1), "last": last}


def build(report: Report) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    wish = {"AXNET_CUDA": "1"} if report.device == "cuda" else {}
    usual = Path("/usr/local/cuda")
    if wish and "CUDA_HOME" not in os.environ and usual.is_dir():  # nvcc on PATH may be a link away from its libraries
        wish["CUDA_HOME"] = str(usual)
    report.put("build", run(report, "build", command, 900, **wish))


def matrix(backend: str) -> list[str]:
    names = ("test_attention.py", "test_average.py", "test_pooling.py", "test_registration.py", "test_errors.py")
    return [
        *(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            f"{backend} or not native and not triton",
        ),
        *(str(ROOT / "tests" / "ops" / name) for name in names),
    ]


def test(report: Report) -> None:
    for backend in backends(report.device):
        wish = {"AXNET_TEST_DEVICE": report.device, "AXNET_TEST_BACKENDS": backend}
        report.put(f"test {backend}", run(report, f"test-{backend}", matrix(backend), 600, **wish))


def sanitize(report: Report) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None or report.device != "cuda":
        report.put("sanitize", "compute-sanitizer is not installed, or there is no GPU")
        return
    wish = {"AXNET_TEST_DEVICE": "cuda", "AXNET_TEST_BACKENDS": "native", "AXNET_TEST_EVERY": "61"}
    wish["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one allocation per tensor: what lies beyond is seen
    for kind in ("memcheck", "racecheck"):
        command = [
            tool,
            "--tool",
            kind,
            "--error-exitcode",
            "9",
            *matrix("native"),
            "-k",
            "not gradcheck and not compile",
        ]
        report.put(f"sanitize {kind}", run(report, f"sanitize-{kind}", command, 150, **wish))


def backends(device: str) -> list[str]:
    import axnet

    return [name for name in axnet.available_backends(device) if name != "reference"]


def check(report: Report) -> None:
    """What the matrix does not see: other streams, graphs, repeated bits, more elements than int32 counts, memory."""
    from axnet.nn import PWAP, AnatomyAwareAttention

    device = report.device
    attention, pool = AnatomyAwareAttention(256, dropout=0.0).to(device), PWAP(256, 14).to(device)
    x = torch.randn(8, 256, 24, 24, device=device)
    mask = torch.rand(8, 2, 24, 24, device=device)

    def step() -> tuple[torch.Tensor, ...]:
        leaf = x.detach().requires_grad_()
        pooled, prob = pool(attention(leaf, mask))
        grads = torch.autograd.grad(pooled.square().sum() + prob.sum(), [leaf, pool.weight])
        return pooled.detach(), prob.detach(), *grads

    first = step()
    same = all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, step(), strict=True))
    report.put("check same bits", same)
    if device != "cuda":
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = step()
    torch.cuda.current_stream().wait_stream(stream)
    report.put("check second stream", all(torch.equal(a, b) for a, b in zip(first, other, strict=True)))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    report.put("check graph", all(torch.equal(a, b) for a, b in zip(step(), captured, strict=True)))

    shape = (1100, 1024, 44, 44)  # 2.18e9 elements
    big = torch.randn(shape, device=device, dtype=BF16)
    masks = torch.rand(shape[0], 2, *shape[2:], device=device)
    wide = AnatomyAwareAttention(1024).to(device, BF16).eval()
    head = PWAP(1024, 2).to(device, BF16)
    with torch.no_grad():
        z = wide(big, masks)
        pooled = head(z)[0]
        close = torch.allclose(z[-1:], wide(big[-1:], masks[-1:]), atol=2e-2, rtol=2e-2)
        close &= torch.allclose(pooled[-1:], head(z[-1:])[0], atol=2e-2, rtol=2e-2)
    report.put("check more than 2^31 elements", close)
    del big, z, masks, pooled
    torch.cuda.empty_cache()


def passes(report: Report) -> None:
    from axnet.bench.measure import copy_bandwidth
    from axnet.bench.measure import passes as kernels
    from axnet.bench.timing import interleaved

    rate = copy_bandwidth(device=report.device)
    report.put("copy bytes per second", rate)
    shape = (64, 1024, 48, 48) if report.device == "cuda" else (2, 64, 16, 16)
    for backend in backends(report.device):
        for dtype in (BF16, F32):
            for layout in LAYOUTS:
                size = torch.finfo(dtype).bits // 8 * math.prod(shape)
                found = kernels(shape, layout, dtype, report.device, backend)
                times = interleaved({name: call for name, (_, call) in found.items()}, report.device)
                for name, (maps, _) in found.items():
                    share = maps * size / (times[name]["median"] / 1e3) / rate
                    row = {"pass": name, "backend": backend, "dtype": str(dtype), "layout": layout}
                    report.put("passes", {**row, **times[name], "share of copy": round(share, 3)}, many=True)


def cases(quick: bool) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Cases in the order of their weight, with the forms of torch.compile that compete."""
    from axnet.bench.cases import Case

    if quick:
        yield Case("a3+mlp", "training", (2, 64, 7, 7), "NCHW", F32), ()
        yield Case("pwap14", "eval", (2, 64, 7, 7), "channels_last", BF16), ()
        return
    compiled = ("compile", "compile:max-autotune-no-cudagraphs")
    for layout in LAYOUTS:
        for task in ("a3+mlp", "pwap14"):
            for mode in ("eval", "training"):
                yield Case(task, mode, (64, 1024, 48, 48), layout, BF16), compiled if layout == "NCHW" else compiled[:1]
    for task in ("a3+mlp", "pwap1", "pwap14"):
        for mode in ("eval", "training"):
            for n, side in ((1, 16), (64, 16), (256, 7)):
                yield Case(task, mode, (n, 1024, side, side), "NCHW", BF16), compiled[:1]
    for dtype in (BF16, F32):
        for n in (1, 8, 64, 256):
            for side in (7, 16, 32, 48):
                for layout in LAYOUTS:
                    for task in ("a3", "a3+mlp", "pwap1", "pwap14"):
                        for mode in ("eval", "training"):
                            yield Case(task, mode, (n, 1024, side, side), layout, dtype), ()
    for task in ("a3+mlp", "pwap14"):
        for mode in ("eval", "training"):
            yield Case(task, mode, (64, 2048, 16, 16), "NCHW", BF16), ()


def blocks(report: Report, quick: bool) -> None:
    import axnet
    from axnet.bench.cases import forms_of
    from axnet.bench.measure import TOLERANCES
    from axnet.bench.measure import check as compare
    from axnet.bench.timing import copies_beyond_cache, interleaved, peak_bytes

    def by(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
        def chosen() -> Any:
            with axnet.use_backend(backend):
                return call()

        return chosen

    for case, compiled in cases(quick):
        if report.late():
            report.put("blocks ended early", True)
            return
        size = torch.finfo(case.dtype).bits // 8 * math.prod(case.shape)
        copies = copies_beyond_cache(size, report.device)
        row = {
            "task": case.task,
            "mode": case.mode,
            "shape": case.shape,
            "layout": case.layout,
            "dtype": str(case.dtype),
        }
        try:
            torch._dynamo.reset()
            found = forms_of(case, ("axnet", "eager", *compiled, "peers"), report.device, copies)
            own = found.pop("axnet")
            calls = {**{name: by(name, own) for name in backends(report.device)}, **found}
            for call in calls.values():
                call()
            compare(case, forms_of(case, ("axnet", "eager"), report.device), TOLERANCES[case.dtype])
            times = interleaved(calls, report.device)
            for form, call in calls.items():
                extra = {"peak bytes": peak_bytes(call, report.device), "floor bytes": case.floor_bytes}
                report.put("blocks", {**row, "form": form, **times[form], **extra}, many=True)
        except Exception as error:
            report.put("blocks", {**row, "error": f"{type(error).__name__}: {str(error)[:400]}"}, many=True)
        finally:
            found = calls = own = None  # type: ignore[assignment]
            if report.device == "cuda":
                torch.cuda.empty_cache()


def heads(report: Report, quick: bool) -> None:
    """ThoraX-PriorNet's head in inference: 15 gates on one X, each averaged over the pixels."""
    from axnet.bench.peers import published_attention
    from axnet.bench.timing import interleaved
    from axnet.nn import MaskedAttention, average_heads

    shape = (2, 64, 8, 8) if quick else (32, 1024, 48, 48)
    for dtype in (BF16, F32):
        modules = [MaskedAttention(shape[1]).to(report.device, dtype).eval() for _ in range(15)]
        x = torch.randn(shape, device=report.device, dtype=dtype)
        masks = torch.rand(shape[0], 15, *shape[2:], device=report.device, dtype=dtype)

        def published(modules=modules, x=x, masks=masks) -> torch.Tensor:
            each = [
                published_attention(x, masks[:, i : i + 1], m.gate, m.bn3).mean((2, 3)) for i, m in enumerate(modules)
            ]
            return torch.stack(each, 1)

        with torch.no_grad():
            calls = {"axnet": lambda m=modules, x=x, k=masks: average_heads(m, x, k), "published": published}
            error = float((calls["axnet"]() - published()).abs().max())
            times = interleaved(calls, report.device)
            ratio = times["published"]["median"] / times["axnet"]["median"]
            row = {"dtype": str(dtype), "shape": shape, "largest difference": error, "times": times}
            report.put("heads", {**row, "speed-up": round(ratio, 2)}, many=True)


def graph(report: Report, quick: bool) -> None:
    """Small shapes: A3 and PWAP captured in a CUDA graph against torch.compile(mode="reduce-overhead")."""
    if report.device != "cuda":
        report.put("graph", "there is no GPU")
        return
    for dtype in (BF16, F32):
        report.put("graph", {"dtype": str(dtype), "times": graph_times(64 if quick else 1024, dtype)}, many=True)


@torch.no_grad()
def graph_times(channels: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    from axnet.bench.timing import interleaved
    from axnet.nn import PWAP, AnatomyAwareAttention

    x = torch.randn(1, channels, 16, 16, device="cuda", dtype=dtype)
    mask = torch.rand(1, 2, 16, 16, device="cuda", dtype=dtype)

    def head(backend: str | None) -> tuple[AnatomyAwareAttention, PWAP]:
        attention = AnatomyAwareAttention(channels, backend=backend).to("cuda", dtype).eval()
        return attention, PWAP(channels, 14, backend=backend).to("cuda", dtype)

    (attention, pooling), (plain_attention, plain_pooling) = head(None), head("reference")

    def own() -> Any:
        return attention.pool(x, mask, pooling)

    def eager() -> Any:
        return plain_pooling(plain_attention(x, mask))

    compiled = torch.compile(eager, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        compiled()
        own()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        own()
    calls = {"axnet, graph": captured.replay, "compile, reduce-overhead": compiled, "axnet": own, "eager": eager}
    return interleaved(calls, "cuda")


def facts(device: str) -> dict[str, Any]:
    from axnet.report import environment

    found = environment()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"capability": f"{properties.major}.{properties.minor}", "CUDA": str(torch.version.cuda)}
        found |= {"multiprocessors": properties.multi_processor_count, "memory bytes": properties.total_memory}
        found["L2 bytes"] = getattr(properties, "L2_cache_size", None)
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found["driver"] = driver.stdout.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated")
    parser.add_argument("--minutes", type=float, default=20, help="after which no further block is timed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries this script out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: tries this script out")
    arguments = parser.parse_args()
    steps = arguments.steps.split(",")
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        parser.error(f"--steps has {unknown[0]!r}, accepted are {', '.join(STEPS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU that torch can use; --device cpu --quick tries this script out.")
    report = Report(arguments.out, arguments.device, arguments.minutes)
    if "build" in steps:
        build(report)
    if list((ROOT / "axnet").glob("_C*")):  # compiled in place; else the installed axnet
        sys.path.insert(0, str(ROOT))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    report.put("environment", facts(arguments.device))
    import axnet

    report.put("backends", axnet.info()["backends"])
    work = {
        "test": lambda: test(report),
        "sanitize": lambda: sanitize(report),
        "check": lambda: check(report),
        "passes": lambda: passes(report),
        "heads": lambda: heads(report, arguments.quick),
        "graph": lambda: graph(report, arguments.quick),
        "blocks": lambda: blocks(report, arguments.quick),
    }
    failed = []
    for name, step in work.items():
        if name in steps:
            try:
                step()
            except Exception as error:  # a step that fails must not take the others with it
                traceback.print_exc()
                failed.append(name)
                report.put(f"{name} failed", re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:1000])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
