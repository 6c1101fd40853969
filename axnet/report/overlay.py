"""One film as a PNG with its organs outlined and a probability map over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from scipy import ndimage

from axnet.data.files import replacing
from axnet.data.findings import ORGANS
from axnet.imaging import fitted, percentile_normalize, resize
from axnet.report.pictures import MASK_COLOURS

SIDE = 768
"""Longer side in pixels."""

_RED = np.array([255.0, 60.0, 40.0])
_OPACITY = 0.45  # of the map where it is largest


def write_overlay(
    path: Path, image: NDArray[Any], masks: NDArray[np.bool_], prob_map: NDArray[np.float32] | None = None
) -> None:
    """Write the PNG, which appears complete or not at all.

    image [H, W]; masks bool [3, H, W] in the order of ORGANS, outlined in the colours of the reports; prob_map [h, w]
    of any resolution, laid over in red, relative to its largest value.
    """
    size = fitted(image.shape, SIDE, enlarge=True)
    picture = np.repeat(percentile_normalize(resize(image, size))[..., None] * 255, 3, axis=2)
    if prob_map is not None and prob_map.max() > 0:
        share = resize(prob_map / prob_map.max(), size)[..., None] * _OPACITY
        picture = picture * (1 - share) + _RED * share
    for organ, mask in zip(ORGANS, masks, strict=True):
        inside = resize(mask, size) >= 0.5
        picture[inside & ~ndimage.binary_erosion(inside, iterations=2)] = ImageColor.getrgb(MASK_COLOURS[organ])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as stream:
        Image.fromarray(picture.round().astype(np.uint8)).save(stream, "PNG")
