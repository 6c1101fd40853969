"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axnet.models.backbone import DenseNetBackbone, StrPath
from axnet.models.pretrained import load_torchvision_densenet


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


def build_backbone(name: str, *, in_channels: int = 1, stages: Sequence[int] | None = None) -> DenseNetBackbone:
    """Make a backbone by its name in BACKBONES; raises ValueError for another name."""
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {tuple(BACKBONES)} or a module.")
    return BACKBONES[name](in_channels=in_channels, stages=stages)
