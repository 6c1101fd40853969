"""The vocabulary: findings, organs, anatomies, and the box that locates a finding."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

NIH_FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 labels of ChestX-ray14, spelt as in Data_Entry_2017_v2020.csv, in the order of Wang et al., CVPR 2017."""

NO_FINDING = "No Finding"
"""What the NIH table writes where none of the 14 labels applies."""

CHEXPERT_FINDINGS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 labels of CheXpert's labeller, which MIMIC-CXR has too, in canonical names and the order of CheXpert."""


def _written(finding: str) -> str:
    """A name without what tables write differently: case, and underscores for spaces."""
    return " ".join(finding.replace("_", " ").split()).casefold()


_CANONICAL = {_written(name): name for name in (*NIH_FINDINGS, *CHEXPERT_FINDINGS)} | {
    "pleural effusion": "Effusion",
    "infiltrate": "Infiltration",
    "airspace opacity": "Lung Opacity",
}


def canonical(finding: str) -> str:
    """The name by which a finding is known in every data set.

    That is NIH's where NIH has it (Effusion, Pleural_Thickening, Infiltration), else CheXpert's (Lung Opacity, also for
    the Airspace Opacity of MIMIC's first release). Labels of other meaning stay apart: Lung Lesion is not Mass or
    Nodule, Pleural Other is not Pleural_Thickening, and Lung Opacity is not Infiltration. Case does not count, nor
    whether words are joined by a space or an underscore; a name that is none of these stays as it is.
    """
    return _CANONICAL.get(_written(finding), finding.strip())


ORGANS: tuple[str, ...] = ("left_lung", "right_lung", "heart")
"""Channels of an organ mask. Left is the patient's left: the right-hand side of the image."""

ANATOMIES: tuple[str, ...] = ("lungs", "heart")
"""Channels of the mask that the network takes."""

MaskT = TypeVar("MaskT", np.ndarray[Any, Any], torch.Tensor)


class Box(NamedTuple):
    """Where a finding is: left, top, width and height in pixels of the image it belongs to."""

    finding: str
    x: float
    y: float
    w: float
    h: float


def organs_to_anatomies(masks: MaskT) -> MaskT:
    """Merge the two lungs of an organ mask.

    masks: [..., 3, H, W] in the order of ORGANS, numpy or torch, bool or any number type.
    Returns [..., 2, H, W] in the order of ANATOMIES, of the same type: the union (maximum) of the lungs, and the heart.
    Raises ValueError when the third axis from the end is not 3.
    """
    if masks.ndim < 3 or masks.shape[-3] != len(ORGANS):
        raise ValueError(f"masks has shape {tuple(masks.shape)}, expected [..., 3, H, W] in the order {ORGANS}.")
    if isinstance(masks, torch.Tensor):
        return torch.stack((torch.maximum(masks[..., 0, :, :], masks[..., 1, :, :]), masks[..., 2, :, :]), dim=-3)
    return np.stack((np.maximum(masks[..., 0, :, :], masks[..., 1, :, :]), masks[..., 2, :, :]), axis=-3)
