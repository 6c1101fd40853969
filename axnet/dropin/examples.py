"""What a model may be called with: guessed where the user does not say, and remembered for every module inside."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axnet.dropin.tracing import Call

_SIZES = {"image": (224, 128, 64, 32), "features": (16, 32, 7)}


@dataclass(frozen=True)
class Spec:
    """Shape, type and range of one tensor of a call; whole numbers are kept as they were."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_mask: bool
    values: Tensor | None

    @classmethod
    def of(cls, t: Tensor) -> Spec:
        """Of a tensor: one whose values lie in [0, 1] counts as a mask."""
        if not t.is_floating_point():
            return cls(tuple(t.shape), t.dtype, t.device, False, t.detach().clone())
        unit = t.numel() > 0 and bool((t.detach().min() >= 0) & (t.detach().max() <= 1))
        return cls(tuple(t.shape), t.dtype, t.device, unit, None)

    def drawn(self, dtype: torch.dtype | None = None, batch: tuple[int, int] | None = None) -> Tensor:
        """Random numbers of this kind; batch: (what the first dimension has, what it is to have)."""
        if self.values is not None:
            return self.values.clone()
        shape = list(self.shape)
        if batch is not None and shape and shape[0] == batch[0]:
            shape[0] = batch[1]
        draw = torch.rand if self.is_mask else torch.randn
        return draw(shape, dtype=torch.float32, device=self.device).to(dtype or self.dtype)


@dataclass(frozen=True)
class Seen:
    """How a module was first called."""

    tensors: dict[str, Spec]
    constants: dict[str, Any]

    @property
    def batch(self) -> int:
        """First dimension of its first tensor."""
        return next((s.shape[0] for s in self.tensors.values() if s.shape), 1)

    @property
    def has_maps(self) -> bool:
        """Whether it takes feature maps or images."""
        return any(len(s.shape) == 4 and s.shape[2] * s.shape[3] > 1 for s in self.tensors.values())


def watched(model: nn.Module, example: Sequence[Any]) -> dict[str, Seen]:
    """The first call of every module by its name, while the model (in eval mode) is called once."""
    seen: dict[str, Seen] = {}
    handles = []

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in seen:
                return
            try:
                call = Call.bound(module, args, kwargs)
            except (TypeError, ValueError):
                return
            seen[name] = Seen({n: Spec.of(t) for n, t in call.tensors.items()}, call.constants)

        return note

    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no such hooks, and has no forward to rewrite
        handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
    try:
        with torch.no_grad():
            model(*example)
    except Exception as error:  # somebody's forward
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"example is not what model can be called with ({type(error).__name__}: {reason}), expected a tensor, or a "
            "tuple of its positional arguments."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def guessed(model: nn.Module) -> tuple[Tensor, ...]:
    """Arguments that the model takes: an image or feature maps, and masks for what else it asks for.

    Raises ValueError where none of the guesses is taken.
    """
    failure: Exception | None = None
    for arguments in _guesses(model):
        try:
            with torch.no_grad():
                model(*arguments)
            return arguments
        except Exception as error:  # somebody's forward
            failure = failure or error
    reason = " ".join(str(failure).split())[:200]
    raise ValueError(
        f"model was called with random images and masks and took none ({reason}), expected example=, a tuple of "
        "tensors that it can be called with."
    ) from failure


def _guesses(model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = max(0, len(needed) - 1)
    weight = next(model.parameters(), torch.zeros(()))
    modules = list(model.modules())
    convolved = [m.in_channels for m in modules if isinstance(m, nn.Conv2d)]
    other = [m.num_features for m in modules if isinstance(m, nn.BatchNorm2d)]
    other += [m.in_features for m in modules if isinstance(m, nn.Linear)]
    channels = list(dict.fromkeys([*convolved, *other]))
    lengths = [len(m) for m in modules if isinstance(m, nn.ModuleList)]
    masks = list(dict.fromkeys([1, *lengths, 2, 3, 14, 15]))
    for c in channels[:6] or [3, 1]:
        for size in _SIZES["image" if c <= 4 else "features"]:
            x = torch.randn(2, c, size, size).to(weight)
            for count in masks if others else [1]:
                yield x, *(torch.rand(2, count, size, size).to(weight) for _ in range(others))
