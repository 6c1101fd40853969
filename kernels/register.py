"""Registration of the Triton ops with torch.library."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from axnet.kernels import checks
from axnet.kernels.launch import INTERPRETED

NAMESPACE = "axnet_triton"


def register(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as axnet_triton::name, behind the checks of its arguments.

    torch.compile sees through triton_op to the kernels. Interpreted kernels cannot be compiled, so there the op stays
    opaque.
    """
    kind = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    check = getattr(checks, name)

    def registered(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return kind(f"{NAMESPACE}::{name}", checked, mutates_args=())

    return registered
