"""Groups of parameters for the optimizer: which are decayed, and the learning rate of each part of a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; biases and normalisation are not decayed.

    layer_decay: learning rate of each part of model.backbone as a share of that of the part behind it (Clark et al.,
    ICLR 2020, for finetuning); the last part's is lr * layer_decay, and what is not in the backbone learns at lr. 1
    gives all of them lr. Parts are those of `parts`.
    """
    depth: dict[int, int] = {}
    backbone = getattr(model, "backbone", None)
    if layer_decay != 1 and isinstance(backbone, nn.Module):
        found = parts(backbone)
        depth = {id(parameter): len(found) for parameter in backbone.parameters()}
        for position, part in enumerate(found):
            depth.update((id(parameter), len(found) - position) for module in part for parameter in module.parameters())
    grouped: dict[int, tuple[list[nn.Parameter], list[nn.Parameter]]] = {0: ([], [])}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith("bias")
            grouped.setdefault(depth.get(id(parameter), 0), ([], []))[plain].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr": lr * layer_decay**level}
        for level, both in sorted(grouped.items())
        for parameters, decay in zip(both, (weight_decay, 0.0), strict=True)
    ]


def parts(backbone: nn.Module) -> list[list[nn.Module]]:
    """The modules of a backbone that learn, from the image on, a normalisation with the convolution before it.

    A module around one network is opened, and so are Sequential, ModuleList and ModuleDict in the network.
    """
    while len(learning := _learning(backbone)) == 1:
        backbone = learning[0]
    found: list[list[nn.Module]] = []
    for module in _opened(backbone.children()):
        if found and all(parameter.ndim <= 1 for parameter in module.parameters()):
            found[-1].append(module)
        else:
            found.append([module])
    return found


def _learning(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _opened(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            yield from _opened(module.children())
        elif any(True for _ in module.parameters()):
            yield module
