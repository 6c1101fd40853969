"""Backbones: modules that turn a radiograph into feature maps at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_GREY = 0.449, 0.226
"""Mean and standard deviation of grey values as torchvision's and most of timm's weights expect them: of the channels'
(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), the means."""


@runtime_checkable
class Backbone(Protocol):
    """What the classifiers need of a backbone: any nn.Module with this attribute and this call.

    channels: number of channels of each feature map that a call returns, in the same order, fine to coarse.
    Called with images [N,in_channels,H,W], it returns a list of feature maps [N,C_i,H_i,W_i].
    """

    channels: tuple[int, ...]

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Feature maps of a batch of images."""
        ...


class DenseNetBackbone(nn.Module):
    """Feature maps of the dense blocks of a DenseNet (Huang et al., CVPR 2017; MONAI's implementation).

    preset: the name under which `build_backbone` makes it again, kept in checkpoints.
    block_config, growth_rate, init_features, bn_size: the DenseNet's own sizes.
    in_channels: 1 (grey) or 3; a grey image given to a 3-channel backbone is repeated.
    stages: dense blocks whose maps are returned, counted from 1, ascending; None for the last two. Blocks after the
        last one asked for are not built.

    Block b has stride 2^(b+1). The last block's map comes after its norm and ReLU, as its classifier would see it;
    an inner block's map is the block's output. Raises ValueError for stages or in_channels out of range.
    """

    channels: tuple[int, ...]
    normalisation: tuple[float, float] | None = IMAGENET_GREY
    """Mean and std of the grey values under which its pretrained weights were trained."""

    def __init__(
        self,
        preset: str,
        block_config: Sequence[int],
        *,
        growth_rate: int = 32,
        init_features: int = 64,
        bn_size: int = 4,
        in_channels: int = 1,
        stages: Sequence[int] | None = None,
    ) -> None:
        """Build the blocks up to the last stage; the class describes the arguments."""
        from monai.networks.nets.densenet import DenseNet  # seconds, which a file of masks or metrics need not wait

        super().__init__()
        blocks = len(block_config)
        chosen = tuple(range(max(1, blocks - 1), blocks + 1)) if stages is None else tuple(stages)
        if not chosen or list(chosen) != sorted(set(chosen)) or not 1 <= chosen[0] <= chosen[-1] <= blocks:
            raise ValueError(f"stages is {stages}, expected ascending dense blocks out of 1 to {blocks}.")
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels is {in_channels}, expected 1 or 3.")
        self.preset = preset
        self.in_channels = in_channels
        self.stages = chosen
        full = DenseNet(2, in_channels, 1, init_features, growth_rate, tuple(block_config), bn_size).features
        self.features = nn.Sequential()
        width, widths = init_features, []
        for block, layers in enumerate(block_config[: chosen[-1]], start=1):
            width = (width if block == 1 else width // 2) + layers * growth_rate
            widths.append(width)
        self.channels = tuple(widths[stage - 1] for stage in chosen)
        for name, layer in full.named_children():
            self.features.add_module(name, layer)
            if name == f"denseblock{chosen[-1]}" and chosen[-1] < blocks:
                break

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stages, for images [N,in_channels,H,W] (or [N,1,H,W])."""
        if self.in_channels == 3 and image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        maps: list[Tensor] = []
        x = image
        for name, layer in self.features.named_children():
            x = layer(x)
            if name == "norm5":
                maps[-1] = F.relu(x)
            elif name.startswith("denseblock") and int(name.removeprefix("denseblock")) in self.stages:
                maps.append(x)
        return maps
