"""Classifiers of chest X-rays: Anatomy-XNet, and the plain DenseNet that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import _register_namedtuple

from axnet.models.backbone import Backbone, DenseNetBackbone
from axnet.models.presets import build_backbone
from axnet.models.staged import StagedBackbone, TimmBackbone
from axnet.nn import PWAP, AnatomyAwareAttention
from axnet.paths import StrPath
from axnet.types import Fusion

CUSTOM = "custom"
"""The backbone's name in the configuration of a classifier that was built on a module of the caller's."""


class Output(NamedTuple):
    """What a classifier returns for a batch."""

    logits: Tensor
    """[N, num_classes]; the sigmoid gives the probability of each finding."""
    prob_maps: tuple[Tensor, ...]
    """Per stage, fine to coarse, the probability maps [N, K, h, w] that pooled it; empty for DenseNetGAP."""
    pooled: Tensor
    """[N, K, F], the pooled features of all stages side by side."""


_register_namedtuple(Output, serialized_type_name="axnet.models.Output")  # torch.export.save writes its name


class AnatomyXNet(nn.Module):
    """Anatomy-XNet (arXiv 2106.05915): backbone, anatomy-aware attention, probability-weighted pooling, classifier.

    For every stage of the backbone: A3 under the anatomy masks, then PWAP. The pooled vectors of all stages, side by
    side, are classified by one linear layer (docs/method.md has the equations and says which are ours).

    num_classes: findings. num_anatomies: mask channels (default lungs, heart).
    backbone: a name (see build_backbone: "densenet121", "tiny", "efficientnet_lite0", "timm:NAME", "torchvision:NAME",
        "monai:NAME"), or a module of the Backbone protocol, which then decides stages and in_channels.
    pretrained: ImageNet weights of a backbone by name: True for those its package brings, or a file.
    stages: dense blocks to use, counted from 1, or strides of a network from another package; None for the last two.
    fusion: "mean" or "concat", see AnatomyAwareAttention; reduction: width of its gates relative to the channels.
    num_maps: 1, one probability map for all findings, or "classes", one per finding, whose pooled vector alone
        decides that finding.
    dropout: on the gates; head_dropout: on the pooled features.
    in_channels: 1 (grey) or 3.
    input_size: side in pixels to which images are resized (bilinear) before the backbone, None for as they come: films
        of 128 pixels then get the finer feature maps of a larger side.
    Raises ValueError for an argument out of range.
    """

    def __init__(
        self,
        num_classes: int = 14,
        num_anatomies: int = 2,
        backbone: str | nn.Module = "densenet121",
        *,
        pretrained: bool | StrPath = False,
        stages: Sequence[int] | None = None,
        fusion: Fusion = "mean",
        reduction: float = 1.0,
        num_maps: Literal[1, "classes"] = 1,
        dropout: float = 0.1,
        head_dropout: float = 0.0,
        in_channels: int = 1,
        input_size: int | None = None,
    ) -> None:
        """Build the network; the class describes the arguments."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected 1 or more.")
        if num_maps not in (1, "classes"):
            raise ValueError(f"num_maps is {num_maps!r}, expected 1 or 'classes'.")
        self.backbone, self.config = _backbone(backbone, in_channels, stages, pretrained)
        self.config |= {
            "num_classes": num_classes,
            "num_anatomies": num_anatomies,
            "fusion": fusion,
            "reduction": reduction,
            "num_maps": num_maps,
            "dropout": dropout,
            "head_dropout": head_dropout,
        }
        self.input_size = _input_size(input_size, self.config)
        maps = num_classes if num_maps == "classes" else 1
        channels = cast(Backbone, self.backbone).channels
        self.attention = nn.ModuleList(
            AnatomyAwareAttention(width, num_anatomies, reduction=reduction, fusion=fusion, dropout=dropout)
            for width in channels
        )
        widths = [cast(AnatomyAwareAttention, attention).out_channels for attention in self.attention]
        self.pooling = nn.ModuleList(PWAP(width, maps) for width in widths)
        self.head_dropout = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(sum(widths), num_classes)
        self.num_maps = maps

    def forward(self, image: Tensor, mask: Tensor) -> Output:
        """Classify a batch.

        image: [N,in_channels,H,W], normalised as in training; mask: [N,num_anatomies,h,w] of any resolution, float in
        [0,1], bool or uint8 (255 = 1).
        """
        maps = self.backbone(resized(image, self.input_size))
        pooled, prob_maps = [], []
        for x, attention, pooling in zip(maps, self.attention, self.pooling, strict=True):
            if isinstance(attention, AnatomyAwareAttention):
                vector, prob = attention.pool(x, mask, pooling)
            else:  # something that was wrapped around it
                vector, prob = pooling(attention(x, mask))
            pooled.append(vector)
            prob_maps.append(prob)
        features = torch.cat(pooled, dim=2)  # [N, K, F]
        dropped = self.head_dropout(features)
        if self.num_maps == 1:
            logits = self.classifier(dropped[:, 0])
        else:  # finding k of its own vector; the layer is called, it may be quantised, adapted or sharded
            logits = self.classifier(dropped).diagonal(dim1=1, dim2=2)
        return Output(logits, tuple(prob_maps), features)


class DenseNetGAP(nn.Module):
    """The plain baseline: backbone, global average pooling of its last stage, linear classifier (as CheXNet).

    Arguments as AnatomyXNet's. Masks are accepted and ignored, so the two are trained and called alike.
    """

    def __init__(
        self,
        num_classes: int = 14,
        backbone: str | nn.Module = "densenet121",
        *,
        pretrained: bool | StrPath = False,
        stages: Sequence[int] | None = None,
        head_dropout: float = 0.0,
        in_channels: int = 1,
        input_size: int | None = None,
    ) -> None:
        """Build the network; the class describes the arguments."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected 1 or more.")
        self.backbone, self.config = _backbone(backbone, in_channels, stages, pretrained)
        self.config |= {"num_classes": num_classes, "head_dropout": head_dropout}
        self.input_size = _input_size(input_size, self.config)
        self.head_dropout = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(cast(Backbone, self.backbone).channels[-1], num_classes)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Output:
        """Classify images [N,in_channels,H,W], normalised as in training; mask is ignored."""
        features = self.backbone(resized(image, self.input_size))[-1].mean((2, 3))  # [N, C]
        return Output(self.classifier(self.head_dropout(features)), (), features.unsqueeze(1))


def _input_size(size: int | None, config: dict[str, Any]) -> int | None:
    """The checked size, which the configuration holds where there is one."""
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"input_size is {size!r}, expected positive pixels or None.")
    config["input_size"] = size
    return size


def resized(image: Tensor, size: int | None) -> Tensor:
    """Images at the side that a classifier wants; as they are for None."""
    if size is None or image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)


def _backbone(
    backbone: str | nn.Module, in_channels: int, stages: Sequence[int] | None, pretrained: bool | StrPath
) -> tuple[nn.Module, dict[str, Any]]:
    """The module, and what names it in a checkpoint."""
    module: nn.Module
    if isinstance(backbone, str):
        module = build_backbone(backbone, in_channels=in_channels, stages=stages, pretrained=pretrained)
    elif isinstance(backbone, nn.Module) and isinstance(backbone, Backbone):
        if pretrained is not False:
            raise ValueError(f"pretrained is {pretrained!r}, expected False with a backbone that is a module.")
        module = backbone
    else:
        raise ValueError(f"backbone is {type(backbone).__name__}, expected a name or an nn.Module with .channels.")
    if isinstance(module, DenseNetBackbone | StagedBackbone | TimmBackbone):
        return module, {"backbone": module.preset, "in_channels": module.in_channels, "stages": list(module.stages)}
    return module, {"backbone": CUSTOM}
