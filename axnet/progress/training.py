"""Progress of a training loop: Lightning's bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from axnet import progress


def bar(*, leave: bool = False) -> ProgressBar:
    """The callback for where standard output goes; leave: whether a bar stays on the terminal when it is full."""
    return TQDMProgressBar(leave=leave) if sys.stdout.isatty() else LogLines()


class LogLines(ProgressBar):
    """One line with steps, rate and the logged numbers, at most every so many seconds (a bar's refresh fills a log)."""

    def __init__(self, seconds: float | None = None) -> None:
        """seconds: between two lines; None for axnet.progress.EVERY."""
        super().__init__()
        self.seconds = progress.EVERY if seconds is None else seconds
        self._enabled = True
        self._started = self._said = 0.0
        self._first = 0

    def disable(self) -> None:
        """Say nothing (on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Say something again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._started = self._said = time.perf_counter()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        """Say where the run is, if it is time."""
        now = time.perf_counter()
        if not self._enabled or now - self._said < self.seconds:
            return
        self._said = now
        speed = progress.rate(trainer.global_step - self._first, now - self._started)
        numbers = "".join(
            f", {name} {value:.4g}" for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"
        )
        steps = f"step {trainer.global_step} of {int(trainer.estimated_stepping_batches)}"
        print(f"epoch {trainer.current_epoch + 1}, {steps}, {speed} steps/s{numbers}", flush=True)
