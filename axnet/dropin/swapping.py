"""A rewritten forward on a module that stays the same object: a subclass of its class, for as long as it is wanted."""

from __future__ import annotations

import copy
import copyreg
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_BASE = "_axnet_base"


@dataclass(frozen=True)
class Plan:
    """A rewritten forward for one mode and one kind of call.

    tensors: names of the arguments that are tensors; constants: the others and their values. skipped: modules that the
    rewritten forward does not call, by name, with their classes.
    """

    tensors: tuple[str, ...]
    constants: Mapping[str, Any]
    skipped: tuple[tuple[str, type[nn.Module]], ...]
    function: Callable[..., Any]


def swap(module: nn.Module, plans: Mapping[bool, Plan], gates: Mapping[str, Callable[..., Any]]) -> None:
    """Give a module rewritten forwards, by training mode. Its class is changed, nothing else."""
    base = type(module)
    parameters = tuple(
        (p.name, p.default)
        for p in list(inspect.signature(base.forward).parameters.values())[1:]
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = plans.get(self.training)
        if plan is not None:
            tensors = _tensors(plan, parameters, args, kwargs)
            if tensors is not None and _untouched(self, plan):
                return plan.function(self, *tensors)
        return base.forward(self, *args, **kwargs)

    def deepcopied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        """As its own class copies it, and accelerated again."""
        own = type(self)
        self.__class__ = cast(Any, base)
        try:
            new = copy.deepcopy(self, memo)
        finally:
            self.__class__ = cast(Any, own)
        new.__class__ = cast(Any, own)
        return new

    def reduced(self: nn.Module, protocol: Any) -> Any:
        """As a module of its own class: files made of it need no axnet."""
        own = type(self)
        self.__class__ = cast(Any, base)
        try:
            parts = cast("tuple[Any, ...]", self.__reduce_ex__(protocol))
        finally:
            self.__class__ = cast(Any, own)
        if parts[0] is copyreg.__newobj__:  # type: ignore[attr-defined]  # pickle wants the class that the module has
            return copyreg._reconstructor, (base, object, None), *parts[2:]  # type: ignore[attr-defined]
        return parts

    own = {
        "forward": forward,
        "__deepcopy__": deepcopied,
        "__reduce_ex__": reduced,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__qualname__": base.__qualname__,
        _BASE: base,
    }
    module.__class__ = cast(Any, type(base.__name__, (base,), own | dict(gates)))


def swapped_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that a module had before swap, or None where it was not swapped."""
    return cast("type[nn.Module] | None", type(module).__dict__.get(_BASE))


def swap_back(module: nn.Module) -> None:
    """Undo swap."""
    base = swapped_class(module)
    if base is not None:
        module.__class__ = cast(Any, base)


def _tensors(
    plan: Plan, parameters: tuple[tuple[str, Any], ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor] | None:
    """The call's tensors in the plan's order, or None where it is a call of another kind."""
    if len(args) > len(parameters):
        return None
    given = {name: value for (name, _), value in zip(parameters, args, strict=False)}
    if any(name in given for name in kwargs):
        return None
    given.update(kwargs)
    tensors, seen = [], 0
    for name, default in parameters:
        value = given.get(name, default)
        seen += name in given
        if name in plan.tensors:
            if not isinstance(value, Tensor):
                return None
            tensors.append(value)
        elif name not in plan.constants or not _same(value, plan.constants[name]):
            return None
    return tensors if seen == len(given) else None


def _same(value: Any, constant: Any) -> bool:
    if value is constant:
        return True
    return type(value) is type(constant) and isinstance(value, bool | int | float | str) and value == constant


def _untouched(module: nn.Module, plan: Plan) -> bool:
    """Whether nothing hangs on the modules that are not called, and they are what they were."""
    if _has_any_global_hook():
        return False
    for name, kind in plan.skipped:
        try:
            skipped = module.get_submodule(name)
        except AttributeError:
            return False
        if not isinstance(skipped, kind) or skipped.training != module.training or hooked(skipped):
            return False
    return True


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
