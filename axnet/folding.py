"""Batch normalisation folded into the convolution before it, and averages taken before a convolution of one pixel: the
same network in inference, with fewer passes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AvgPoolNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

_SIDE = 64  # of the images that a classifier of axnet is traced with


@dataclass(frozen=True)
class Folded:
    """What `fold` made of a network. Its text is a table.

    model: a copy in eval mode, where each folded normalisation is an nn.Identity. folded: normalisations that were
    folded, with the convolution that took them. kept: those that were not, with the reason. earlier: average pools
    that now run before the convolution that they followed, with that convolution.
    """

    model: nn.Module
    folded: dict[str, str]
    kept: dict[str, str]
    earlier: dict[str, str]

    def __str__(self) -> str:
        """The counts, then the normalisations by reason."""
        total = len(self.folded) + len(self.kept)
        lines = [f"{len(self.folded)} of {total} batch normalisations folded into the convolution before them"]
        for reason, count in Counter(self.kept.values()).most_common():
            first = next(name for name, why in self.kept.items() if why == reason)
            lines.append(f"{count} kept: {reason} ({first}{', ...' if count > 1 else ''})")
        if self.earlier:
            pools, first = len(self.earlier), next(iter(self.earlier))
            more = ", ..." if pools > 1 else ""
            lines.append(f"{pools} average pools before the 1x1 convolution that they followed ({first}{more})")
        return "\n".join(lines)


def fold(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> Folded:
    """The same network for inference, with batch normalisations that follow a convolution folded into its weights.

    model: any network; it stays as it is. example: what it is called with, to trace it (torch.export); None for an
    AnatomyXNet or a DenseNetGAP. A normalisation is folded where its whole input is the output of one convolution that
    nothing else reads, and both are called once, as layers without hooks. In a DenseNet that is the second of each
    dense layer and the stem's: the others stand behind a concatenation, before a ReLU. Weights are folded in float64.
    An average pool that alone reads a 1x1 convolution of stride 1 runs before it (in a DenseNet's transitions): the two
    commute where each window's weights sum to one, and the convolution has a quarter of the pixels left.
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
    pools = {name: layer for name, layer in again.named_modules() if isinstance(layer, _AvgPoolNd)}
    if not norms and not pools:
        return Folded(again, {}, {}, {})
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
        found = _convolution_before(norm, "batch_norm", owners)
        if isinstance(found, str):
            kept[name] = found
            continue
        folded[name] = names[found]
        new |= {found: _fused(found, norm), norm: nn.Identity()}
    earlier: dict[str, str] = {}
    for name, pool in pools.items():
        found = _convolution_before(pool, "avg_pool", owners)
        if isinstance(found, _ConvNd) and _commute(found, pool):
            earlier[name] = names[found]
            new |= {found: nn.Sequential(pool, found), pool: nn.Identity()}
    for name, layer in list(again.named_modules(remove_duplicate=False)):  # one layer may have several names
        if layer in new:
            again.set_submodule(name, new[layer])
    return Folded(again.eval(), folded, kept, earlier)


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


def _convolution_before(layer: nn.Module, word: str, owners: dict[fx.Node, nn.Module]) -> _ConvNd | str:
    """The convolution that a layer, whose op begins with the word, can be merged with, or why there is none; owners:
    who computed each node."""
    calls = [node for node, owner in owners.items() if owner is layer and _word(node).startswith(word)]
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
    if not type(layer).__module__.startswith("torch.nn."):
        return f"{type(layer).__name__} may do more than normalise"
    parameters = (*before.args[1:3], *calls[0].args[1:3])
    if any(isinstance(one, fx.Node) and one.op != "placeholder" for one in parameters):
        return "its weights or its convolution's are computed"
    if isinstance(layer, _BatchNorm) and layer.running_mean is None:
        return "it has no running statistics"
    if any(one._forward_hooks or one._forward_pre_hooks for one in (layer, convolution)):
        return "it or its convolution has a hook"
    return convolution


def _commute(convolution: _ConvNd, pool: nn.Module) -> bool:
    """Whether the average of a convolution is the convolution of an average, and of fewer pixels."""
    own = cast(Any, pool)
    one_pixel = {*convolution.kernel_size, *convolution.stride} == {1}
    padded = isinstance(convolution.padding, tuple) and any(convolution.padding)  # a word pads one pixel by none
    whole = own.padding in (0, (0,) * len(convolution.stride)) and getattr(own, "divisor_override", None) is None
    fewer = own.stride not in (1, (1,) * len(convolution.stride))
    plain = not isinstance(convolution, _ConvTransposeNd) and type(convolution).__module__.startswith("torch.nn.")
    return plain and one_pixel and not padded and whole and fewer


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
