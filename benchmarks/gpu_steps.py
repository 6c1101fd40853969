"""The measurements of benchmarks/gpu.py. Each takes up where the record ends and stops in time."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_record import Record

BF16, F32 = torch.bfloat16, torch.float32
LAYOUTS = ("NCHW", "channels_last")


@dataclass
class Work:
    """What, where and how long a step measures.

    until: time.time() after which it begins nothing more. only: of the backends that are there.
    """

    device: str
    quick: bool
    until: float
    only: tuple[str, ...] = ("native", "triton")

    def late(self) -> bool:
        return time.time() > self.until

    def backends(self) -> list[str]:
        import axnet

        return [name for name in axnet.available_backends(self.device) if name in self.only]


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(record: Record, work: Work) -> None:
    """What the matrix does not see: other streams, graphs, repeated bits, more elements than int32 counts."""
    if record.has("check", "more than 2^31 elements" if work.device == "cuda" else "same bits"):
        return
    from axnet.nn import PWAP, AnatomyAwareAttention

    device = work.device
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
    record.put("check", "same bits", same)
    if device != "cuda":
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = step()
    torch.cuda.current_stream().wait_stream(stream)
    record.put("check", "second stream", all(torch.equal(a, b) for a, b in zip(first, other, strict=True)))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    record.put("check", "graph", all(torch.equal(a, b) for a, b in zip(step(), captured, strict=True)))

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
    record.put("check", "more than 2^31 elements", close)
    del big, z, masks, pooled
    torch.cuda.empty_cache()


def passes(record: Record, work: Work) -> None:
    from axnet.bench.measure import copy_bandwidth
    from axnet.bench.measure import passes as kernels
    from axnet.bench.timing import interleaved

    if not record.has("passes", "copy bytes per second"):
        record.put("passes", "copy bytes per second", copy_bandwidth(device=work.device))
    rate = record.get("passes", "copy bytes per second")
    shape = (64, 1024, 48, 48) if work.device == "cuda" else (2, 64, 16, 16)
    for dtype in (BF16, F32):
        for layout in LAYOUTS:
            names = [f"{backend} {named(dtype)} {layout}" for backend in work.backends()]
            if all(record.has("passes", name) for name in names):
                continue
            if work.late():
                return
            size = torch.finfo(dtype).bits // 8 * math.prod(shape)
            found = {b: kernels(shape, layout, dtype, work.device, b) for b in work.backends()}
            calls = {f"{b}/{name}": call for b, each in found.items() for name, (_, call) in each.items()}
            times = interleaved(calls, work.device)
            for backend, key in zip(found, names, strict=True):
                rows = []
                for name, (maps, _) in found[backend].items():
                    each = times[f"{backend}/{name}"]
                    share = maps * size / (each["median"] / 1e3) / rate
                    row = {"pass": name, "backend": backend, "dtype": str(dtype), "layout": layout}
                    rows.append({**row, **each, "share of copy": round(share, 3)})
                record.put("passes", key, rows)
            del found, calls
            if work.device == "cuda":
                torch.cuda.empty_cache()


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


def by(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    import axnet

    def chosen() -> Any:
        with axnet.use_backend(backend):
            return call()

    return chosen


def blocks(record: Record, work: Work) -> None:
    from axnet.bench.cases import forms_of
    from axnet.bench.measure import TOLERANCES
    from axnet.bench.measure import check as compare
    from axnet.bench.timing import copies_beyond_cache, interleaved, peak_bytes

    for case, compiled in cases(work.quick):
        sizes = "x".join(map(str, case.shape))
        key = f"{case.task} {case.mode} {sizes} {case.layout} {named(case.dtype)}{' compiled' if compiled else ''}"
        if record.has("blocks", key):
            continue
        if work.late():
            return
        size = torch.finfo(case.dtype).bits // 8 * math.prod(case.shape)
        copies = copies_beyond_cache(size, work.device)
        row = {"task": case.task, "mode": case.mode, "shape": case.shape}
        row |= {"layout": case.layout, "dtype": str(case.dtype)}
        rows: list[dict[str, Any]] = []
        try:
            torch._dynamo.reset()
            found = forms_of(case, ("axnet", "eager", *compiled, "peers"), work.device, copies)
            own = found.pop("axnet")
            calls = {**{name: by(name, own) for name in work.backends()}, **found}
            for call in calls.values():
                call()
            compare(case, forms_of(case, ("axnet", "eager"), work.device), TOLERANCES[case.dtype])
            times = interleaved(calls, work.device)
            for form, call in calls.items():
                extra = {"peak bytes": peak_bytes(call, work.device), "floor bytes": case.floor_bytes}
                rows.append({**row, "form": form, **times[form], **extra})
        except Exception as error:
            rows.append({**row, "error": f"{type(error).__name__}: {str(error)[:400]}"})
        finally:
            found = calls = own = None  # type: ignore[assignment]
            if work.device == "cuda":
                torch.cuda.empty_cache()
        record.put("blocks", key, rows)


def heads(record: Record, work: Work) -> None:
    """ThoraX-PriorNet's head in inference: 15 gates on one X, each averaged over the pixels."""
    from axnet.bench.peers import published_attention
    from axnet.bench.timing import interleaved
    from axnet.nn import MaskedAttention, average_heads

    shape = (2, 64, 8, 8) if work.quick else (32, 1024, 48, 48)
    for dtype in (BF16, F32):
        if work.late() or record.has("heads", named(dtype)):
            continue
        modules = [MaskedAttention(shape[1]).to(work.device, dtype).eval() for _ in range(15)]
        x = torch.randn(shape, device=work.device, dtype=dtype)
        masks = torch.rand(shape[0], 15, *shape[2:], device=work.device, dtype=dtype)

        def published(modules=modules, x=x, masks=masks) -> torch.Tensor:
            each = [
                published_attention(x, masks[:, i : i + 1], m.gate, m.bn3).mean((2, 3)) for i, m in enumerate(modules)
            ]
            return torch.stack(each, 1)

        with torch.no_grad():
            calls = {"axnet": lambda m=modules, x=x, k=masks: average_heads(m, x, k), "published": published}
            error = float((calls["axnet"]() - published()).abs().max())
            times = interleaved(calls, work.device)
            ratio = times["published"]["median"] / times["axnet"]["median"]
            row = {"dtype": str(dtype), "shape": shape, "largest difference": error, "times": times}
            record.put("heads", named(dtype), {**row, "speed-up": round(ratio, 2)})


def graph(record: Record, work: Work) -> None:
    """Small shapes: A3 and PWAP captured in a CUDA graph against torch.compile(mode="reduce-overhead")."""
    if work.device != "cuda":
        return
    for dtype in (BF16, F32):
        if not work.late() and not record.has("graph", named(dtype)):
            times = graph_times(64 if work.quick else 1024, dtype)
            record.put("graph", named(dtype), {"dtype": str(dtype), "times": times})


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


def models(record: Record, work: Work) -> None:
    """Films a second and peak memory of whole networks in bfloat16, channels_last; all forms in turns."""
    from axnet.bench.timing import interleaved, peak_bytes

    sizes = ((2, 32),) if work.quick else ((128, 224), (32, 512))
    compiled = () if work.quick else ("compile",)
    for films, side in sizes:
        for mode in ("eval", "training"):
            key = f"{films} films of {side} px, {mode}"
            if work.late() or record.has("models", key):
                continue
            torch._dynamo.reset()
            calls = {
                f"{name}, {form}": call
                for form in ("eager", *compiled)
                for name, call in networks(films, side, mode, form, work).items()
            }
            for call in calls.values():  # compiles, and chooses cuDNN's algorithms
                call(), call()
            times = interleaved(calls, work.device, 5)
            rows = []
            for name, call in calls.items():
                rate = films / times[name]["median"] * 1e3
                row = {"model": name, "films": films, "side": side, "mode": mode, **times[name]}
                rows.append({**row, "films per second": round(rate, 1), "peak bytes": peak_bytes(call, work.device)})
            record.put("models", key, rows)
            del calls
            if work.device == "cuda":
                torch.cuda.empty_cache()


def networks(films: int, side: int, mode: str, form: str, work: Work) -> dict[str, Callable[[], Any]]:
    from axnet.models import AnatomyXNet, DenseNetGAP

    backbone = "tiny" if work.quick else "densenet121"
    x = torch.randn(films, 1, side, side, device=work.device).contiguous(memory_format=torch.channels_last)
    mask = torch.rand(films, 2, side, side, device=work.device)
    labels = torch.randint(0, 2, (films, 14), device=work.device).float()

    def made(name: str) -> Callable[[], Any]:
        torch.manual_seed(0)
        network = DenseNetGAP(14, backbone) if name == "gap" else AnatomyXNet(14, 2, backbone)
        network = network.to(work.device, memory_format=torch.channels_last).train(mode == "training")
        optimizer = torch.optim.Adam(network.parameters(), 1e-4)

        def forward(films: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            with torch.autocast(work.device, BF16):
                return network(films, masks).logits

        run = torch.compile(forward, fullgraph=True) if form == "compile" else forward

        def evaluate() -> Any:
            with torch.no_grad():
                return run(x, mask)

        def train() -> Any:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.binary_cross_entropy_with_logits(run(x, mask).float(), labels).backward()
            optimizer.step()

        call = train if mode == "training" else evaluate
        return call if name == "gap" else by(name, call)

    names = {"DenseNet + GAP": "gap", "AnatomyXNet": "native", "AnatomyXNet, reference layers": "reference"}
    return {title: made(name) for title, name in names.items()}


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


STEPS: dict[str, Callable[[Record, Work], None]] = {
    "check": check,
    "passes": passes,
    "blocks": blocks,
    "graph": graph,
    "heads": heads,
    "models": models,
}
