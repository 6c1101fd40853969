"""Where a classifier looked, against boxes around the findings: its probability maps, or Grad-CAM where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axnet.metrics.localisation import Localisation, localisation
from axnet.models import AnatomyXNet, DenseNetGAP, Preprocessing
from axnet.models.classifier import resized
from axnet.train.data import Batches, XraySet
from axnet.train.facts import FilmBox
from axnet.train.inputs import to_input
from axnet.train.scoring import evaluating

FRAME = 256
"""Side in pixels of the frame in which boxes and maps are compared."""
SIZES: tuple[tuple[str, float], ...] = (("below 2 %", 0.02), ("2 to 6 %", 0.06), ("above 6 %", 1.01))
"""Names of the sizes of a box, in shares of the film, and the share below which it has that size."""
_BATCH = 32


@dataclass(frozen=True)
class Localised:
    """Where a model looked, against B boxes.

    maps: "probability maps" or "Grad-CAM". findings, share (of the film): of the boxes.
    """

    maps: str
    result: Localisation
    findings: tuple[str, ...]
    share: npt.NDArray[np.float64]

    def part(self, rows: npt.NDArray[np.bool_]) -> Localisation:
        """The result on some of the boxes."""
        r = self.result
        return Localisation(r.iou[rows], r.iobb[rows], r.hit[rows], r.predicted[rows])

    def parts(self) -> dict[str, Localisation]:
        """The result on all boxes, by size and by finding."""
        found = {"all boxes": self.result}
        low = 0.0
        for name, top in SIZES:
            rows = (self.share >= low) & (self.share < top)
            low = top
            if rows.any():
                found[name] = self.part(rows)
        for finding in dict.fromkeys(self.findings):
            found[finding] = self.part(np.array([one == finding for one in self.findings]))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The measures as JSON takes them."""
        return {
            "maps": self.maps,
            "parts": {
                name: {
                    "boxes": len(part.iou),
                    "pointing_game": part.pointing,
                    "iou_accuracy": {f"{t:g}": value for t, value in part.accuracy("iou").items()},
                    "iobb_accuracy": {f"{t:g}": value for t, value in part.accuracy("iobb").items()},
                }
                for name, part in self.parts().items()
            },
        }


def localise(
    model: nn.Module, preprocessing: Preprocessing, data: XraySet, boxes: Sequence[FilmBox]
) -> Localised | None:
    """Compare a classifier's maps with boxes on films of a set with masks.

    None without boxes of its findings, or for a model without maps (has_maps).

    A finding's map is that of finding_maps; the rule for the box that it predicts is that of
    axnet.metrics.localisation, in a frame of FRAME x FRAME pixels.
    """
    boxes = [box for box in boxes if box.finding in data.findings]
    if not boxes or not has_maps(model):
        return None
    rows = sorted({box.row for box in boxes})
    maps: dict[int, npt.NDArray[np.float32]] = {}
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        wanted = sorted({data.findings.index(box.finding) for box in boxes if box.row in part})
        found = finding_maps(model, preprocessing, data, part, wanted)
        maps.update(zip(part, found, strict=True))
    chosen = np.stack([maps[box.row][data.findings.index(box.finding)] for box in boxes])
    corners = np.array([[box.x, box.y, box.w, box.h] for box in boxes]) * FRAME
    return Localised(
        maps="Grad-CAM" if isinstance(model, DenseNetGAP) else "probability maps",
        result=localisation(corners, chosen, (FRAME, FRAME)),
        findings=tuple(box.finding for box in boxes),
        share=np.array([box.share for box in boxes]),
    )


def finding_maps(
    model: nn.Module, preprocessing: Preprocessing, data: XraySet, rows: Sequence[int], columns: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Where each finding was seen on some films, float32 [len(rows), K, h, w] in [0, 1].

    Of AnatomyXNet, the maps that pooled the finding, averaged over the stages, each over its largest value; the one
    map there is, where all findings share it. Of DenseNetGAP, Grad-CAM (Selvaraju et al., ICCV 2017) of its last stage,
    over its largest value, of the findings in columns alone; the others' maps are 0.
    """
    batch = Batches(data).__getitems__(list(rows))
    weights = next(model.parameters())
    ready = to_input({name: value.to(weights.device) for name, value in batch.items()}, preprocessing)
    image = ready["image"].to(weights.dtype)
    findings = len(data.findings)
    if isinstance(model, DenseNetGAP):
        return _grad_cam(model, image, columns, findings)
    with evaluating(model):
        stages = [stage.float().cpu() for stage in model(image, ready["mask"]).prob_maps]
    fine = stages[0].shape[-2:]
    scaled = [F.interpolate(stage, fine, mode="bilinear", align_corners=False) for stage in stages]
    mean = torch.stack([_over_largest(stage) for stage in scaled]).mean(0)
    return np.asarray(mean.expand(-1, findings, -1, -1).numpy(), dtype=np.float32)


def has_maps(model: nn.Module) -> bool:
    """Whether finding_maps knows where a model looks."""
    return isinstance(model, (AnatomyXNet, DenseNetGAP))


def shared_map(model: nn.Module) -> bool:
    """Whether all findings of a classifier have the same map."""
    return getattr(model, "num_maps", 0) == 1


def _over_largest(maps: Tensor) -> Tensor:
    return maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-12)


class _Traced(nn.Module):
    """DenseNetGAP with a place at which MONAI's hooks find one tensor: its last feature map."""

    def __init__(self, model: DenseNetGAP) -> None:
        super().__init__()
        self.model, self.last = model, nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        backbone = cast(Any, self.model.backbone)
        features: Tensor = self.last(backbone(resized(image, self.model.input_size))[-1])
        logits: Tensor = self.model.classifier(features.mean((2, 3)))
        return logits


def _grad_cam(model: DenseNetGAP, image: Tensor, columns: Sequence[int], findings: int) -> npt.NDArray[np.float32]:
    from monai.visualize.class_activation_maps import GradCAM

    was_training = model.training
    cam = GradCAM(_Traced(model.eval()), target_layers="last")
    maps: list[Tensor] = [torch.zeros(0)] * findings
    with torch.enable_grad():
        seen = image.clone().requires_grad_()  # whose gradient reaches the last map, frozen or not
        for column in columns:
            maps[column] = _over_largest(cam.compute_map(seen, class_idx=column).detach().float().cpu())
    model.train(was_training).zero_grad()
    blank = torch.zeros_like(maps[columns[0]])
    return np.asarray(torch.cat([one if len(one) else blank for one in maps], dim=1).numpy(), dtype=np.float32)
