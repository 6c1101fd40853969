"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axnet.models.backbone import DenseNetBackbone
from axnet.models.pretrained import load_torchvision_densenet
from axnet.models.staged import EFFICIENTNET_LITE, PACKAGES, StagedBackbone, TimmBackbone, build_staged
from axnet.paths import StrPath


def densenet121(
    pretrained_file: StrPath | None = None, *, in_channels: int = 1, stages: Sequence[int] | None = None
) -> DenseNetBackbone:
    """DenseNet-121: blocks of 256, 512, 1024 and 1024 channels at strides 4, 8, 16 and 32.

    pretrained_file: ImageNet weights in torchvision's format, see `load_torchvision_densenet`.
    in_channels, stages: see DenseNetBackbone; by default the last two blocks.
    """
    backbone = DenseNetBackbone("densenet121", (6, 12, 24, 16), in_channels=in_channels, stages=stages)
    if pretrained_file is not None:
        load_torchvision_densenet(backbone, pretrained_file)
    return backbone


def tiny(*, in_channels: int = 1, stages: Sequence[int] | None = None) -> DenseNetBackbone:
    """A small DenseNet of three blocks at strides 4, 8 and 16, for images of about 100 pixels on a CPU."""
    return DenseNetBackbone(
        "tiny", (2, 4, 6), growth_rate=16, init_features=16, bn_size=2, in_channels=in_channels, stages=stages
    )


BACKBONES: dict[str, Callable[..., DenseNetBackbone]] = {"densenet121": densenet121, "tiny": tiny}
"""Backbones that classifiers and checkpoints know by name."""


def build_backbone(
    name: str,
    *,
    in_channels: int = 1,
    stages: Sequence[int] | None = None,
    pretrained: bool | StrPath = False,
) -> DenseNetBackbone | StagedBackbone | TimmBackbone:
    """Make a backbone by its name.

    name: one of BACKBONES, of EFFICIENTNET_LITE (extra "backbones"), or "timm:NAME", "torchvision:NAME", "monai:NAME"
        of those packages. stages: dense blocks of the first, counted from 1, and strides of the others; None for the
        last two. pretrained: ImageNet weights: True for those that the package brings, or a file.
    Raises ValueError for another name, stages or weights that do not fit; ModuleNotFoundError that says what to
    install.
    """
    if name in EFFICIENTNET_LITE or name.partition(":")[0] in PACKAGES:
        return build_staged(name, in_channels=in_channels, stages=stages, pretrained=pretrained)
    if name not in BACKBONES:
        names = (*BACKBONES, *EFFICIENTNET_LITE, *(f"{package}:NAME" for package in PACKAGES))
        raise ValueError(f"backbone is {name!r}, expected one of {names} or a module.")
    if pretrained is True:
        raise ValueError(f"pretrained is True, but no package brings weights of '{name}', expected a file with them.")
    backbone = BACKBONES[name](in_channels=in_channels, stages=stages)
    if pretrained is not False:
        load_torchvision_densenet(backbone, pretrained)
    return backbone
