"""How well a segmenter draws: Dice per organ and the error of the cardiothoracic ratio."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from axnet.data.findings import ORGANS
from axnet.imaging import mask_values
from axnet.segment.segmenter import Segmenter


class OrganSet(Protocol):
    """A data set whose items hold image [1, H, W], the organs' masks [3, H, W] and, where known, ctr."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image with its masks."""
        ...


def organ_mask(item: dict[str, Any]) -> torch.Tensor:
    """The organs' masks of an item of OrganMaskSet ("mask") or PhantomXray ("organ_mask"): float32 [3, H, W] in [0, 1].

    Masks of a set of the caller's may be 0/1 or 0 to 255, of any type (axnet.imaging.mask_values).
    """
    mask = item.get("organ_mask", item.get("mask"))
    if mask is None or mask.shape[0] != len(ORGANS):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(f"an item has organ masks of shape {shape}, expected [3, H, W] in the order {ORGANS}.")
    return torch.from_numpy(mask_values(torch.as_tensor(mask).cpu().numpy(), "organ masks of an item"))


def evaluate_segmenter(segmenter: Segmenter, dataset: OrganSet | Dataset[Any]) -> dict[str, dict[str, float]]:
    """Dice of each organ in the images' own frame, averaged over the images, and the error of the heart's ratio.

    dataset: OrganMaskSet or PhantomXray. Returns {organ: {"Dice": ..., "HD95": ...}}: HD95 is the 95th percentile of
    the distances between the two outlines, in pixels of the image, averaged where both exist. The heart also has "CTR
    error", the mean absolute difference to the owner's cardiothoracic ratio over the images where both are known. An
    organ absent from both masks counts 1 in Dice, from one of them 0. Raises ValueError when empty.
    """
    assert isinstance(dataset, Sized)
    if len(dataset) == 0:
        raise ValueError("dataset is empty, expected at least one image with organ masks.")
    from monai.metrics.hausdorff_distance import HausdorffDistanceMetric
    from monai.metrics.meandice import DiceMetric

    metric = DiceMetric(reduction="mean_batch", ignore_empty=False)
    distance = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")
    errors: list[float] = []
    for index in range(len(dataset)):
        item = dataset[index]
        anatomy = segmenter.predict([item["image"][0].numpy()])[0]
        pair = torch.from_numpy(anatomy.masks).float()[None], (organ_mask(item) >= 0.5).float()[None]
        metric(*pair)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about organs that one of the two lacks: they are left out below
            distance(*pair)
        ratio = float(item.get("ctr", math.nan))
        if not math.isnan(ratio) and not math.isnan(anatomy.ctr):
            errors.append(abs(ratio - anatomy.ctr))
    means = metric.aggregate()
    assert isinstance(means, torch.Tensor)
    distances = distance.aggregate()
    assert isinstance(distances, torch.Tensor)
    distances = torch.where(distances.isfinite(), distances, torch.nan).nanmean(0)
    result = {
        organ: {"Dice": float(value), "HD95": float(pixels)}
        for organ, value, pixels in zip(ORGANS, means, distances, strict=True)
    }
    if errors:
        result["heart"]["CTR error"] = float(np.mean(errors))
    return result
