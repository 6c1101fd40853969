"""Clocks: device events on a GPU, the processor's clock elsewhere."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]
CACHE_BYTES = 256 * 2**20
"""More than any GPU's second-level cache holds."""


def seconds_of(call: Call, device: str = "cpu", repeats: int = 1) -> float:
    """Seconds of one call, the mean of `repeats` in a row; on "cuda" by events around them, without the host's part."""
    if device == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(calls: dict[str, Call], device: str = "cpu", rounds: int = 11) -> dict[str, dict[str, float]]:
    """Milliseconds of every call, quantiles 10 ("low"), 50 ("median"), 90 ("high"); calls in turns, samples of 4 ms."""
    repeats = {}
    for name, call in calls.items():
        seconds_of(call, device, 3)
        repeats[name] = max(1, min(100, math.ceil(4e-3 / max(seconds_of(call, device, 3), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call, device, repeats[name]) * 1e3)
    result = {}
    for name, values in times.items():
        cuts = statistics.quantiles(values, n=10)
        result[name] = {"low": cuts[0], "median": statistics.median(values), "high": cuts[-1]}
    return result


def copies_beyond_cache(size: int, device: str) -> int:
    """How many copies of a map of so many bytes a GPU has to take in turns to find none in its cache; 1 on a CPU."""
    return max(1, min(16, math.ceil(CACHE_BYTES / size))) if device == "cuda" else 1


def peak_bytes(call: Call, device: str) -> int | None:
    """GPU memory that a call takes at most beyond what was held before; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
