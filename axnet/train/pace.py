"""How fast this machine trains: a few steps are timed before a run is planned."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

import torch

from axnet.models import Preprocessing
from axnet.train.data import XraySet
from axnet.train.fitting import FitConfig, fit

_FEW, _MORE = 3, 15


def seconds_per_step(configs: Sequence[FitConfig], data: XraySet) -> float:
    """Seconds that one step of each of these runs takes, added up, on the films of a set; beginnings are left out."""
    total = 0.0
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            short = replace(config, out=folder, progress=False, logs=False, precise_bn=0)
            few, more = (fit(replace(short, max_steps=steps), data).seconds for steps in (_FEW, _MORE))
        total += max(more - few, 0.1 * more) / (_MORE - _FEW)
    return total


def made_up(size: int, count: int, findings: Sequence[str]) -> XraySet:
    """A set of noise, to time steps on before there are films."""
    draw = torch.Generator().manual_seed(0)
    names = tuple(str(number) for number in range(count))
    return XraySet(
        images=torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=draw),
        masks=torch.randint(0, 256, (count, 2, size, size), dtype=torch.uint8, generator=draw),
        labels=torch.randint(0, 2, (count, len(findings)), generator=draw).float(),
        findings=tuple(findings),
        ids=names,
        patients=names,
        split_hash="",
        preprocessing=Preprocessing(size=size),
    )
