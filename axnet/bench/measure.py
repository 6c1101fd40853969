"""Timing: correctness first, then interleaved repeats of all forms in one process, medians and quantiles."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from axnet.bench.cases import FORMS, LAYOUTS, MODES, SHAPES, TASKS, Call, Case, forms_of
from axnet.bench.timing import copies_beyond_cache, seconds_of
from axnet.ops import calls, fused_ops
from axnet.ops.layouts import accumulator

# Of the largest value: sums in another order, maps rounded in between.
TOLERANCES = {torch.float32: 2e-3, torch.float64: 1e-8, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Record:
    """Times of one form on one case, in milliseconds: quantiles 20, 50, 80 of the repeats."""

    task: str
    mode: str
    shape: tuple[int, ...]
    layout: str
    form: str
    low: float
    median: float
    high: float
    repeats: int
    gigabytes_per_second: float
    """Bytes of the floor over the median time."""
    floor_share: float
    """Time of the floor (its bytes at the measured copy's bandwidth) over the median time."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def copy_bandwidth(megabytes: int | None = None, repeats: int = 9, device: str = "cpu") -> float:
    """Bytes per second (read and written) of a copy of a float32 tensor (256 MB, on a GPU 4 GB): the median."""
    source = torch.rand((megabytes or (4096 if device == "cuda" else 256)) * 2**18, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(repeats + 2)][2:]
    return 2 * source.numel() * 4 / statistics.median(times)


def check(case: Case, calls: dict[str, Call], tolerance: float = TOLERANCES[torch.float32]) -> None:
    """Raise RuntimeError unless every form gives the eager form's numbers: no time is reported for a wrong result.

    Outputs are compared by their largest error. A gradient has steps: where a sum is next to a kink of LeakyReLU, its
    last bit decides for some of the numbers. It is compared by the norm of the error.
    """
    if "eager" not in calls:
        return
    expected = calls["eager"]()
    for form, call in calls.items():
        for place, (a, e) in enumerate(zip(call(), expected, strict=True)):
            norm = 2 if case.mode == "training" and place == 1 else math.inf
            error, scale = (torch.linalg.vector_norm(t, norm, dtype=torch.float64).item() for t in (a - e, e))
            if not error <= tolerance * max(scale, 1e-6):
                raise RuntimeError(f"{form} differs from eager by {error:.3g} of {scale:.3g} on {case}.")


def measure(
    case: Case, copy: float, forms: tuple[str, ...] = FORMS, seconds: float = 1.0, device: str = "cpu"
) -> list[Record]:
    """Time the forms of a case in turns, for about `seconds` per form; copy: bytes per second of copy_bandwidth."""
    torch._dynamo.reset()
    size = torch.finfo(case.dtype).bits // 8 * math.prod(case.shape)
    calls = forms_of(case, forms, device, copies_beyond_cache(size, device))
    check(case, calls, TOLERANCES[case.dtype])
    times: dict[str, list[float]] = {form: [] for form in calls}
    for call in calls.values():
        seconds_of(call, device)
    stop = time.perf_counter() + seconds * len(calls)
    while min(map(len, times.values())) < 5 or (time.perf_counter() < stop and len(times[forms[0]]) < 500):
        for form, call in calls.items():
            times[form].append(seconds_of(call, device))
    return [_record(case, form, values, copy) for form, values in times.items()]


def _record(case: Case, form: str, values: list[float], copy: float) -> Record:
    low, median, high = (statistics.quantiles(values, n=10)[i] for i in (1, 4, 7))
    floor = case.floor_bytes
    return Record(
        case.task,
        case.mode,
        case.shape,
        case.layout,
        form,
        low * 1e3,
        median * 1e3,
        high * 1e3,
        len(values),
        floor / median / 1e9,
        floor / copy / median,
    )


def run_all(
    *,
    tasks: Iterable[str] = TASKS,
    modes: Iterable[str] = MODES,
    shapes: Iterable[tuple[int, int, int, int]] = SHAPES,
    layouts: Iterable[str] = LAYOUTS,
    forms: tuple[str, ...] = FORMS,
    seconds: float = 1.0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    say: Callable[[Record], None] = lambda record: None,
) -> Iterator[Record]:
    """Time every combination; say is called with each record as it comes."""
    copy = copy_bandwidth(device=device)
    for task in tasks:
        for mode in modes:
            for layout in layouts:
                for shape in shapes:
                    for record in measure(Case(task, mode, shape, layout, dtype), copy, forms, seconds, device):
                        say(record)
                        yield record


def summary(records: Iterable[Record]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Speed-up of axnet over every other form: (task, mode, form) to its geometric mean and its least value.

    The form "compile, both" compares the two under torch.compile.
    """
    times = {(r.task, r.mode, r.shape, r.layout, r.form): r.median for r in records}
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for (task, mode, shape, layout, form), median in times.items():
        rivals = {"compile": (("axnet", form), ("axnet-compile", "compile, both"))}.get(form, (("axnet", form),))
        for rival, title in rivals if not form.startswith("axnet") else ():
            own = times.get((task, mode, shape, layout, rival))
            if own is not None:
                ratios.setdefault((task, mode, title), []).append(median / own)
    return {
        key: {"mean": math.exp(sum(map(math.log, values)) / len(values)), "least": min(values)}
        for key, values in ratios.items()
    }


def pass_bandwidths(
    copy: float,
    shape: tuple[int, int, int, int] = (64, 1024, 32, 32),
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Share of a copy's bandwidth that each pass of A3 and PWAP reaches on a large X (64 Mi elements), per layout."""
    result: dict[str, dict[str, float]] = {}
    for layout in LAYOUTS:
        for name, (maps, call) in passes(shape, layout, dtype, device).items():
            median = statistics.median([seconds_of(call, device) for _ in range(7)][2:])
            size = math.prod(shape) * torch.finfo(dtype).bits // 8
            result.setdefault(name, {})[layout] = maps * size / median / copy
    return result


def passes(
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    backend: str = "native",
) -> dict[str, tuple[int, Call]]:
    """The ops behind A3 and PWAP with the number of X-sized maps that each reads and writes."""
    ops = fused_ops(backend)
    acc = accumulator(dtype)
    n, c, h, w = shape
    mask, gate = torch.rand(n, 2, h, w, device=device, dtype=acc), torch.rand(n, 2, c, device=device, dtype=acc)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=form)
    d = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=form)
    moments = partial(calls.masked_moments, ops, x, mask, second=True, positions=True, blocks=1)
    first = moments()
    norm = partial(
        calls.gate_norm,
        ops,
        x,
        mask,
        gate,
        moments=first.moments,
        mass=first.mass,
        weight=None,
        bias=None,
        running_mean=None,
        running_var=None,
        eps=1e-5,
        concat=False,
        save=True,
        link=first.link,
        coef_link=first.coef_link,
    )
    _, mean, var, saved = norm()
    sums = partial(
        calls.gate_norm_backward,
        ops,
        d,
        x,
        mask,
        gate,
        mass=first.mass,
        weight=None,
        mean=mean,
        var=var,
        saved=saved,
        eps=1e-5,
        batch_statistics=True,
        concat=False,
    )
    inputs = partial(
        calls.masked_moments_backward,
        ops,
        x,
        mask,
        argmax=first.argmax,
        grad_descriptors=torch.rand_like(first.descriptors),
        grad_z=d,
        coef=sums().coef,
        input_grad=True,
        mask_grad=False,
    )
    result: dict[str, tuple[int, Call]] = {
        "moments": (1, moments),
        "descriptors": (1, partial(calls.masked_moments, ops, x, mask, second=False, positions=False, blocks=0)),
        "gate + norm": (2, norm),
        "backward sums": (2, sums),
        "backward input": (3, inputs),
    }
    for maps in (1, 14):
        weight = torch.randn(maps, c, device=device, dtype=acc) / c**0.5
        pool = partial(calls.pwap, ops, x, weight, None)
        pooled, _, logits, scale = pool()
        backward = partial(
            calls.pwap_backward,
            ops,
            torch.randn_like(pooled),
            None,
            x,
            weight,
            logits=logits,
            norm=scale,
            pooled=pooled,
        )
        result[f"pwap, {maps}"] = (1, pool)
        result[f"pwap backward, {maps}"] = (2, partial(backward, input_grad=True))
    return result


def saved_share(shape: tuple[int, int, int, int]) -> float:
    """Bytes that A3 keeps for its backward pass over the bytes of X; masks and the gate's own tensors not counted."""
    from axnet.functional import anatomy_attention

    x, mask = torch.randn(shape, requires_grad=True), torch.rand(shape[0], 2, *shape[2:])
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        anatomy_attention(x, mask, lambda pool: torch.full_like(pool.masked_avg, 0.5), training=True)
    kept.pop(mask.untyped_storage().data_ptr(), None)
    return sum(kept.values()) / (x.numel() * 4)
