"""Timing: correctness first, then interleaved repeats of all forms in one process, medians and quantiles."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from axnet.bench.cases import FORMS, LAYOUTS, MODES, SHAPES, TASKS, Call, Case, forms_of

TOLERANCE = 2e-3  # of the largest value: float32 sums in another order


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


def copy_bandwidth(megabytes: int = 256, repeats: int = 9) -> float:
    """Bytes per second (read and written) of a copy of a float32 tensor of this size: the median."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    times = [_time(lambda: target.copy_(source)) for _ in range(repeats + 2)][2:]
    return 2 * source.numel() * 4 / statistics.median(times)


def _time(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check(case: Case, calls: dict[str, Call]) -> None:
    """Raise RuntimeError unless every form gives the eager form's numbers: no time is reported for a wrong result."""
    if "eager" not in calls:
        return
    expected = calls["eager"]()
    for form, call in calls.items():
        for a, e in zip(call(), expected, strict=True):
            error = (a - e).abs().max().item()
            scale = max(e.abs().max().item(), 1e-6)
            if not error <= TOLERANCE * scale:
                raise RuntimeError(f"{form} differs from eager by {error:.3g} of {scale:.3g} on {case}.")


def measure(case: Case, copy: float, forms: tuple[str, ...] = FORMS, seconds: float = 1.0) -> list[Record]:
    """Time the forms of a case in turns, for about `seconds` per form; copy: bytes per second of copy_bandwidth."""
    torch._dynamo.reset()
    calls = forms_of(case, forms)
    check(case, calls)
    times: dict[str, list[float]] = {form: [] for form in calls}
    for call in calls.values():
        _time(call)
    stop = time.perf_counter() + seconds * len(calls)
    while min(map(len, times.values())) < 5 or (time.perf_counter() < stop and len(times[forms[0]]) < 500):
        for form, call in calls.items():
            times[form].append(_time(call))
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
    say: Callable[[Record], None] = lambda record: None,
) -> Iterator[Record]:
    """Time every combination; say is called with each record as it comes."""
    copy = copy_bandwidth()
    for task in tasks:
        for mode in modes:
            for layout in layouts:
                for shape in shapes:
                    for record in measure(Case(task, mode, shape, layout), copy, forms, seconds):
                        say(record)
                        yield record


def summary(records: Iterable[Record]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Speed-up of axnet over every other form: (task, mode, form) to its geometric mean and its least value."""
    times = {(r.task, r.mode, r.shape, r.layout, r.form): r.median for r in records}
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for (task, mode, shape, layout, form), median in times.items():
        own = times.get((task, mode, shape, layout, "axnet"))
        if form != "axnet" and own is not None:
            ratios.setdefault((task, mode, form), []).append(median / own)
    return {
        key: {"mean": math.exp(sum(map(math.log, values)) / len(values)), "least": min(values)}
        for key, values in ratios.items()
    }


def pass_bandwidths(copy: float, shape: tuple[int, int, int, int] = (64, 1024, 32, 32)) -> dict[str, dict[str, float]]:
    """Share of a copy's bandwidth that each pass of A3 reaches on a large X (256 MB), per layout."""
    result: dict[str, dict[str, float]] = {}
    for layout in LAYOUTS:
        for name, (maps, call) in _passes(shape, layout).items():
            median = statistics.median([_time(call) for _ in range(7)][2:])
            result.setdefault(name, {})[layout] = maps * math.prod(shape) * 4 / median / copy
    return result


def _passes(shape: tuple[int, int, int, int], layout: str) -> dict[str, tuple[int, Call]]:
    """The ops behind A3 with the number of X-sized maps that each reads and writes."""
    ops = torch.ops.axnet
    n, c, h, w = shape
    mask, gate = torch.rand(n, 2, h, w), torch.rand(n, 2, c)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(shape).contiguous(memory_format=form)
    d = torch.randn(shape).contiguous(memory_format=form)
    descriptors, moments, argmax, mass, link, coef_link = ops.masked_moments(x, mask, True, True, 1)
    arguments = (x, mask, gate, moments, mass, None, None, None, None, 1e-5, False, True, link, coef_link)
    _, mean, var, saved = ops.gate_norm(*arguments)
    backward = (d, x, mask, gate, mass, None, mean, var, saved, 1e-5, True, False)
    coef = ops.gate_norm_backward(*backward)[0]
    delta = torch.rand_like(descriptors)
    return {
        "moments": (1, lambda: ops.masked_moments(x, mask, True, True, 1)),
        "gate + norm": (2, lambda: ops.gate_norm(*arguments)),
        "backward sums": (2, lambda: ops.gate_norm_backward(*backward)),
        "backward input": (3, lambda: ops.masked_moments_backward(x, mask, argmax, delta, d, coef, True, False)),
    }


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
