"""What long steps say: a line at the beginning and one at the end, and a bar or a line now and then between."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

EVERY = 30.0
"""Seconds between two lines of a step where no terminal shows a bar."""

Advance = Callable[[int], None]
"""Called with the number of films (epochs, steps) that are done so far."""


class Progress:
    """Reports the steps of a command.

    say: called with each line. bars: whether to show what happens within a step: a bar on a terminal, in a log file a
    line every EVERY seconds; without, only its beginning and end are told.
    """

    def __init__(self, say: Callable[[str], None], *, bars: bool = True) -> None:
        """The class describes the arguments."""
        self.say = say
        self.bars = bars

    @contextmanager
    def step(self, what: str, total: int, unit: str = "films") -> Iterator[Advance]:
        """A step that does `total` units; the body calls what it is given with the number done so far.

        The closing line has the number, the seconds and the rate (if any was done: masks may come from a cache).
        """
        self.say(f"{what}: {total} {unit} ...")
        started = said = time.perf_counter()
        done = 0
        bar: Any = _bar(what, total, unit) if self.bars and sys.stderr.isatty() else None

        def advance(count: int) -> None:
            nonlocal done, said
            if bar is not None:
                bar.update(count - done)
            done = count
            now = time.perf_counter()
            if self.bars and bar is None and now - said >= EVERY and count < total:
                self.say(f"{what}: {count} of {total} {unit}, {rate(count, now - started)} {unit}/s")
                said = now

        with nullcontext() if bar is None else bar:
            yield advance
        seconds = time.perf_counter() - started
        speed = f", {rate(done, seconds)} {unit}/s" if done else ""
        self.say(f"{what}: {total} {unit} in {seconds:.0f} s{speed}")


SILENT = Progress(lambda _: None, bars=False)
"""Says nothing: what the library does unless it is told otherwise."""


def rate(count: int, seconds: float) -> str:
    """Units a second with three digits, as text."""
    value = count / max(seconds, 1e-6)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bar(what: str, total: int, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(desc=what, total=total, unit=f" {unit}", leave=False)
