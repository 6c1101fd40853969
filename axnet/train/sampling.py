"""Which films an epoch shows, and in which order: the same for all processes, each of which takes its share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

SamplingName = Literal["uniform", "balanced"]
SAMPLINGS: tuple[str, ...] = get_args(SamplingName)


def class_balanced(labels: Tensor) -> Tensor:
    """The chance [N] of each film where first a finding is chosen, all alike, and then a film that has it.

    Class-aware sampling (Shen et al., ECCV 2016) for several labels a film: having none of the findings is one more
    class. labels: [N,K] in [0,1], or NaN for unknown, which counts as not having it; a label above one half as having.
    """
    has = (labels > 0.5).double()
    classes = torch.cat((has, (has.sum(1, keepdim=True) == 0).double()), dim=1)
    films = classes.sum(0)
    chance: Tensor = (classes / films.clamp(min=1)).sum(1) / (films > 0).sum()
    return chance


class WeightedSampler(DistributedSampler[Any]):
    """Draws films with replacement, each with its chance [N], as many as DistributedSampler would give.

    All processes draw the same list, by seed and epoch, and each takes every replicas-th of it: a resumed run, whose
    loop names the epoch, goes on with the films that it would have had.
    """

    def __init__(
        self, data: Dataset[Any], chance: Tensor, replicas: int, rank: int, *, seed: int, drop_last: bool
    ) -> None:
        """The class describes the arguments."""
        super().__init__(data, replicas, rank, seed=seed, drop_last=drop_last)
        self.chance = chance

    def __iter__(self) -> Iterator[int]:
        """Positions of this process's films in this epoch."""
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        films = torch.multinomial(self.chance, self.total_size, replacement=True, generator=draw)
        return iter(films[self.rank :: self.num_replicas].tolist())
