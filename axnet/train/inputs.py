"""From a batch as sets hold it to what a classifier takes."""

from __future__ import annotations

import torch
from torch import Tensor

from axnet.models.preprocessing import Preprocessing
from axnet.train.augment import Augmentation


def to_input(
    batch: dict[str, Tensor], preprocessing: Preprocessing, augmentation: Augmentation | None = None
) -> dict[str, Tensor]:
    """A batch with normalised float32 images and float32 masks in [0,1], moved when augmentation is given."""
    image = batch["image"].to(torch.float32).div_(255)
    mask = batch["mask"].to(torch.float32).div_(255)
    if augmentation is not None:
        image, mask = augmentation(image, mask)
    return {**batch, "image": preprocessing.normalize(image), "mask": mask}
