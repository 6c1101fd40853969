"""Batch normalisation folded into the convolution before it: the same network in inference, with fewer passes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

_SIDE = 64  # of the images that a classifier of axnet is traced with


@dataclass(frozen=True)
class Folded:
    """What `fold` made of a network. Its text is a table.

    model: a copy in eval mode, where each folded normalisation is an nn.Identity. folded: normalisations that were
    folded, with the convolution that took them. kept: those that were not, with the reason.
    """

    model: nn.Module
    folded: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        """The counts, then the normalisations by reason."""
        total = len(self.folded) + len(self.kept)
        lines = [f"{len(self.folded)} of {total} batch normalisations folded into the convolution before them"]
        for reason, count in Counter(self.kept.values()).most_common():
            first = next(name for name, why in self.kept.items() if why == reason)
            lines.append(f"{count} kept: {reason} ({first}{', ...' if count > 1 else ''})")
        return "\n".join(lines)


def fold(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> Folded:
    """Fold every batch normalisation that follows a convolution, and nothing else, into its weights; for inference.

    model: any network; it stays as it is. example: what it is called with, to trace it (torch.export); None for an
    AnatomyXNet or a DenseNetGAP. A normalisation is folded where its whole input is the output of one convolution that
    nothing else reads, and both are called once, as layers without hooks. In a DenseNet that is the second of each
    dense layer and the stem's: the others stand behind a concatenation, before a ReLU. Weights are folded in float64.
    Raises ValueError where the network has to be traced and cannot be, or without an example for another one.
    """
    given = _example(model) if example is None else example
    if not isinstance(given, tuple) or not all(isinstance(one, Tensor) for one in given):
        raise ValueError(f"example is a {type(given).__name__}, expected a tuple of the tensors that model takes.")
    try:
        again = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"model cannot be copied, so it cannot be folded: {error}") from error
    norms = {name: layer for name, layer in again.named_modules() if isinstance(layer, _BatchNorm)}
    if not norms:
        return Folded(again, {}, {})
    try:
        with torch.no_grad():
            graph = torch.export.export(again, given, strict=False).graph
    except Exception as error:  # whatever someone's forward raises when it is traced
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model cannot be traced with this example, so it cannot be folded: {reason}") from error
    owners = {node: again.get_submodule(_owner(node)) for node in graph.nodes if node.op == "call_function"}
    names = {layer: name for name, layer in again.named_modules()}
    folded: dict[str, str] = {}
    kept: dict[str, str] = {}
    new: dict[nn.Module, nn.Module] = {}
    for name, norm in norms.items():
        found = _convolution_before(norm, owners)
        if isinstance(found, str):
            kept[name] = found
            continue
        folded[name] = names[found]
        new |= {found: _fused(found, norm), norm: nn.Identity()}
    for name, layer in list(again.named_modules(remove_duplicate=False)):  # one layer may have several names
        if layer in new:
            again.set_submodule(name, new[layer])
    return Folded(again, folded, kept)


def _example(model: nn.Module) -> tuple[Tensor, ...]:
    from axnet.models import AnatomyXNet, DenseNetGAP

    if not isinstance(model, AnatomyXNet | DenseNetGAP):
        raise ValueError(f"example is missing, expected what {type(model).__name__} is called with, as a tuple.")
    weight = next(model.parameters())
    image = torch.rand(2, model.config.get("in_channels", 1), _SIDE, _SIDE).to(weight)
    if isinstance(model, DenseNetGAP):
        return (image,)
    return image, torch.rand(2, model.config["num_anatomies"], _SIDE, _SIDE).to(weight)


def _owner(node: fx.Node) -> str:
    """The name of the module that computed a node."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][0])


def _convolution_before(norm: nn.Module, owners: dict[fx.Node, nn.Module]) -> _ConvNd | str:
    """The convolution that a normalisation can be folded into, or why there is none; owners: who computed each node."""
    calls = [node for node, owner in owners.items() if owner is norm and _word(node) == "batch_norm"]
    if not calls:
        return "part of a fused layer, or not called"
    if len(calls) > 1:
        return "called several times"
    before = cast(fx.Node, calls[0].args[0])
    convolution = owners.get(before)
    if not _word(before).startswith("conv"):
        return f"its input is no convolution's output but that of {_word(before)}"
    if not isinstance(convolution, _ConvNd):
        return "its convolution is not a layer of torch.nn"
    again = [node for node, owner in owners.items() if owner is convolution and _word(node).startswith("conv")]
    if len(again) > 1 or len(before.users) > 1:
        return "its convolution is used for something else too"
    if not type(norm).__module__.startswith("torch.nn."):
        return f"{type(norm).__name__} may do more than normalise"
    parameters = (*before.args[1:3], *calls[0].args[1:3])
    if any(isinstance(one, fx.Node) and one.op != "placeholder" for one in parameters):
        return "its weights or its convolution's are computed"
    if cast(Any, norm).running_mean is None:
        return "it has no running statistics"
    hooked = (norm._forward_hooks, norm._forward_pre_hooks, convolution._forward_hooks, convolution._forward_pre_hooks)
    if any(hooked):
        return "it or its convolution has a hook"
    return convolution


def _word(node: fx.Node) -> str:
    """An op in a word: cat, relu."""
    target = str(node.target) if node.op == "call_function" else "the model itself"
    return target.removeprefix("aten.").split(".")[0].rstrip("_")


def _fused(convolution: _ConvNd, norm: nn.Module) -> nn.Module:
    kind = convolution.weight.dtype
    transposed = isinstance(convolution, _ConvTransposeNd)
    # copies, as other layers may share their weights
    exact, scale = copy.deepcopy(convolution).double(), copy.deepcopy(cast(Any, norm)).double()
    return fuse_conv_bn_eval(exact, scale, transpose=transposed).to(kind)
