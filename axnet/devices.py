"""Devices by name, and the layout that is fastest on them."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def device_of(name: str) -> torch.device:
    """The device of a name: "auto" is the GPU that torch has, else the CPU; of several processes each takes its own.

    Raises ValueError for a name that torch does not know, or a device that is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device("cpu" if name == "auto" else name)
        torch.zeros(1, device=device).cpu()  # "meta" holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own text runs over many lines
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device is '{name}', which does not serve here ({reason}).") from error
    return device


def in_channels_last(model: M) -> M:
    """The model, whose convolutions now compute in channels_last: on CPUs 10 to 30 % faster than in NCHW."""
    found: M = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found
