"""The models of the comparison: axnet's, and those in between, of axnet's layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from axnet.models import AnatomyXNet, DenseNetGAP, Output, build_backbone
from axnet.nn import PWAP, AnatomyAwareAttention, PCAMHead
from benchmarks.comparison_jobs import Job

PARTS = ("pcam", "pwap", "a3")


class OnePart(nn.Module):
    """The last stage's map and one of: PCAM's head, PWAP, or A3 before the average."""

    def __init__(self, part: str, classes: int, backbone: str, pretrained: bool) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, pretrained=pretrained)
        self.part = part
        width = self.backbone.channels[-1]
        layers = {"pcam": lambda: PCAMHead(width, classes), "pwap": lambda: PWAP(width)}
        self.layer = layers[part]() if part in layers else AnatomyAwareAttention(width)
        self.classifier = nn.Identity() if part == "pcam" else nn.Linear(width, classes)

    def forward(self, image: Tensor, mask: Tensor) -> Output:
        x = self.backbone(image)[-1]
        if self.part == "pcam":
            logits, prob = self.layer(x)
            return Output(logits, (prob,), x.mean((2, 3)).unsqueeze(1))
        if self.part == "pwap":
            pooled, prob = self.layer(x)
            return Output(self.classifier(pooled[:, 0]), (prob,), pooled)
        pooled = self.layer(x, mask).mean((2, 3))
        return Output(self.classifier(pooled), (), pooled.unsqueeze(1))


class MasksAsChannels(nn.Module):
    """GAP on the film and its masks, whose weights in the first convolution begin at zero."""

    def __init__(self, classes: int, backbone: str, pretrained: bool, anatomies: int = 2) -> None:
        super().__init__()
        self.network = DenseNetGAP(classes, backbone, pretrained=pretrained)
        first = next(m for m in self.network.modules() if isinstance(m, nn.Conv2d))
        extra = first.weight.new_zeros(first.out_channels, anatomies, *first.kernel_size)
        first.weight = nn.Parameter(torch.cat((first.weight.detach(), extra), dim=1))
        first.in_channels += anatomies

    def forward(self, image: Tensor, mask: Tensor) -> Output:
        scaled = nn.functional.interpolate(mask, image.shape[-2:], mode="bilinear", align_corners=False)
        return cast(Output, self.network(torch.cat((image, scaled.to(image.dtype)), dim=1)))


def build(job: Job, classes: int) -> nn.Module:
    """A job's model; draws its first weights from torch's generator."""
    if job.model in PARTS:
        return OnePart(job.model, classes, job.backbone, job.pretrained)
    if job.model == "channels":
        return MasksAsChannels(classes, job.backbone, job.pretrained)
    options: dict[str, Any] = {**job.options, "backbone": job.backbone, "pretrained": job.pretrained}
    if job.recipe.size is not None:
        options["input_size"] = job.recipe.size
    return (AnatomyXNet if job.model == "axnet" else DenseNetGAP)(classes, **options)


def activation(model: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
    """Where findings are seen [N,K,h,w]: class activation maps of GAP, the coarsest probability map of the others."""
    output = model(image, mask)
    if output.prob_maps:
        prob: Tensor = output.prob_maps[-1]
        return prob
    if not isinstance(model, DenseNetGAP):
        return image.new_zeros(len(image), 0, 1, 1)
    size = model.input_size or image.shape[-1]
    scaled = nn.functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)
    features = model.backbone(scaled)[-1]
    return torch.einsum("nchw,kc->nkhw", features, model.classifier.weight)
