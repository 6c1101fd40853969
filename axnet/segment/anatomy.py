"""From probabilities to organ masks: components, plausibility checks, cardiothoracic ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from axnet.data.cardiothoracic import cardiothoracic_ratio
from axnet.data.findings import ORGANS

MIRRORED_ORGANS = (1, 0, 2)
"""Channels of ORGANS after a left-right mirror: a lung is named after its side of the image."""

_SECOND_PART = 0.1  # least size of a second part, as a share of the largest: below it is a speck, which is dropped
_AGREEMENT = 0.8  # least Dice between an organ and the one found on the film moved a little
# Share of the image that an organ covers on a frontal film; wide, so that it flags failures and not small patients.
_AREA = {"left_lung": (0.03, 0.40), "right_lung": (0.03, 0.40), "heart": (0.02, 0.30)}


@dataclass(frozen=True)
class Anatomy:
    """Organs of one radiograph.

    masks: bool [3, H, W] in the image's own frame, in the order of axnet.data.ORGANS. ctr: cardiothoracic ratio, nan
    when an organ is missing. quality: 0 to 1, the mean certainty of the least certain organ, lowered by every flag;
    not a probability. flags: what is implausible, empty when nothing is. probabilities: float32 [3, h, w] at the
    network's size, where Segmenter.predict was asked to keep them.
    """

    masks: npt.NDArray[np.bool_]
    ctr: float
    quality: float
    flags: tuple[str, ...]
    probabilities: npt.NDArray[np.float32] | None = None


def compare(
    probabilities: npt.NDArray[np.float32], moved: npt.NDArray[np.float32], image: npt.NDArray[np.float32]
) -> tuple[str, ...]:
    """Flags from what the network itself says: about the film moved a little, and about the organs' grey values.

    probabilities: [3, h, w]; moved: those of the moved film, moved back; image: [h, w] as the network saw it.
    """
    flags = []
    one, other = probabilities >= 0.5, moved >= 0.5
    for k, organ in enumerate(ORGANS):
        both = one[k].sum() + other[k].sum()
        if both and 2 * (one[k] & other[k]).sum() < _AGREEMENT * both:
            flags.append(f"{organ} differs on the film moved a little")
    lungs, heart = (one[0] | one[1]) & ~one[2], one[2]
    if lungs.any() and heart.any() and np.median(image[lungs]) > np.median(image[heart]):
        flags.append("the grey values are inverted")
    return tuple(flags)


def examine(probabilities: npt.NDArray[Any], found_before: tuple[str, ...] = ()) -> Anatomy:
    """Organ masks with their checks from probabilities [3, H, W] in [0, 1], in the order of ORGANS.

    Each organ keeps its largest connected part and loses its holes. found_before: flags to add.
    Raises ValueError for another shape.
    """
    if probabilities.ndim != 3 or probabilities.shape[0] != len(ORGANS):
        raise ValueError(f"probabilities has shape {probabilities.shape}, expected [3, H, W] in the order {ORGANS}.")
    masks = np.zeros(probabilities.shape, dtype=bool)
    flags = list(found_before)
    certainty: list[float] = []
    for k, organ in enumerate(ORGANS):
        found = probabilities[k] >= 0.5
        masks[k], second = _largest(found)
        share = masks[k].mean()
        if not _AREA[organ][0] <= share <= _AREA[organ][1]:
            flags.append(f"{organ} covers {share:.1%} of the image")
        if second > _SECOND_PART:
            flags.append(f"{organ} is in several parts")
        certainty.append(float(np.abs(2 * probabilities[k][found] - 1).mean()) if found.any() else 0.0)
    flags += _order(masks)
    quality = min(certainty) * max(0.0, 1 - 0.25 * len(flags))
    return Anatomy(masks, cardiothoracic_ratio(masks), quality, tuple(flags))


def _largest(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], float]:
    """The largest connected part without holes, and the size of the second as a share of it."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask, 0.0
    sizes = np.bincount(labels.ravel())[1:]
    largest = int(sizes.argmax())
    box = ndimage.find_objects(labels)[largest]  # nothing outside it can be a hole
    kept = np.zeros_like(mask)
    kept[box] = ndimage.binary_fill_holes(labels[box] == 1 + largest)
    second = np.sort(sizes)[-2] / sizes.max() if count > 1 else 0.0
    return kept, float(second)


def _order(masks: npt.NDArray[np.bool_]) -> list[str]:
    if not all(mask.any() for mask in masks):
        return []
    columns = np.arange(masks.shape[-1])
    left, right, heart = (float((mask.sum(0) * columns).sum() / mask.sum()) for mask in masks)
    if left <= right:  # the patient's left lung is on the right-hand side of the image
        return ["the lungs are on the wrong sides"]
    return [] if right < heart < left else ["the heart is not between the lungs"]
