"""Registration of the Triton ops with torch.library."""

from collections.abc import Callable
from typing import Any

import torch
from axnet.kernels.launch import INTERPRETED

NAMESPACE = "axnet_triton"


def register(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as axnet_triton::name.

    torch.compile sees through triton_op to the kernels. Interpreted kernels cannot be compiled, so there the op stays
    opaque.
    """
    kind = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    return lambda function: kind(f"{NAMESPACE}::{name}", function, mutates_args=())
