"""Whether a module may be computed without being called, and how torch.fx sees its call."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a module is just what its type says, so that its parameters are all there is to its call.

    False for subclasses (parametrised, sharded, quantised and user's own ones), for hooks of any kind (old-style weight
    normalisation and pruning are hooks), and for a patched forward: such a module has to be called.
    """
    return (
        type(module) in types
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not _has_any_global_hook()
    )


def is_traced(x: object) -> bool:
    """Whether x stands for a tensor inside torch.fx.symbolic_trace."""
    return not isinstance(x, Tensor) and isinstance(x, torch.fx.Proxy)


def as_node(module: nn.Module, *arguments: Any) -> Any:
    """The call of a module as one node of the graph that torch.fx.symbolic_trace is making.

    Raises TypeError where the module itself is what is traced: there is nothing to hold the node's module.
    """
    tracer = cast(Any, arguments[0]).tracer
    if tracer.root is module:
        raise TypeError(
            f"{type(module).__name__} cannot be traced by torch.fx.symbolic_trace by itself: trace a model that holds "
            "it (it becomes one node), or use torch.export."
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, {})
