"""Films shared out over the processes that torchrun starts: each scores its own, the first puts all together."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which of `count` processes this is, counted from 0."""

    rank: int = 0
    count: int = 1

    def of(self, parts: Sequence[T]) -> Sequence[T]:
        """This process's parts; whole batches, so that each is computed as one process computes it."""
        return parts[self.rank :: self.count]

    def summed(self, rows: Tensor) -> Tensor:
        """What every process has, where each film's row is 0 but in the process that it belongs to."""
        if self.count > 1:
            dist.all_reduce(rows)
        return rows

    def gathered(self, mine: T) -> list[T]:
        """What all processes have, in their order, for the first one; nothing for the others."""
        if self.count == 1:
            return [mine]
        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(mine, found)
        return found or []


ALONE = Share()


@contextmanager
def shared_out() -> Iterator[Share]:
    """This process's share, where torchrun has started several; they are connected (gloo) while the body runs.

    Raises ConnectionError, in one sentence, where another process has ended.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2 or "RANK" not in os.environ:
        yield ALONE
        return
    with ended_with_a_sentence(count, "start it again."):
        dist.init_process_group("gloo")
        try:
            yield Share(dist.get_rank(), count)
            dist.barrier()  # none leaves while another needs it
        finally:
            dist.destroy_process_group()


@contextmanager
def ended_with_a_sentence(count: int, remedy: str) -> Iterator[None]:
    """Raises ConnectionError where the body fails, or torchrun ends it, since another of count processes is gone."""
    lost = f"another of the {count} processes of this run has ended; {remedy}"

    def ended(number: int, frame: FrameType | None) -> None:
        raise ConnectionError(lost)

    main = threading.current_thread() is threading.main_thread() and count > 1
    before = signal.signal(signal.SIGTERM, ended) if main else None
    try:
        yield
    except RuntimeError as error:
        if count < 2 or not re.search(r"gloo|nccl|[Cc]onnection (closed|reset)", str(error)):
            raise
        reason = " ".join(str(error).split())
        raise ConnectionError(f"{lost.removesuffix('.')} ({reason[:200]}).") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
