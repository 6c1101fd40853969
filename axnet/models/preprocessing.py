"""What happens to a radiograph before the network: kept in the checkpoint, so that prediction repeats training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from axnet.imaging import normalize_and_resize, percentile_normalize, resize


@dataclass(frozen=True)
class Preprocessing:
    """Size, contrast and normalisation of the images of one classifier.

    size: side in pixels of the square that the network sees.
    percentiles: grey values between these two percentiles of the image are stretched to [0,1]; None leaves them.
    mean, std: of the grey values in [0,1] after that, subtracted and divided out.
    Raises ValueError for a size or std that is not positive.
    """

    size: int = 224
    percentiles: tuple[float, float] | None = (1.0, 99.0)
    mean: float = 0.5
    std: float = 0.25

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected positive pixels.")
        if not self.std > 0:
            raise ValueError(f"std is {self.std}, expected a positive number.")

    def store(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Stretch and resize one image [H,W] in [0,1], or uint8 or uint16, as read_stored returns it.

        Returns uint8 [size,size], the form in which sets are held; the same for an image in either form.
        """
        if image.dtype in (np.uint8, np.uint16):
            small = normalize_and_resize(image, self.size, self.percentiles)
        else:
            grey = image if self.percentiles is None else percentile_normalize(image, *self.percentiles)
            small = resize(grey, self.size)
        return np.rint(small.clip(0, 1) * 255).astype(np.uint8)

    def normalize(self, images: Tensor) -> Tensor:
        """Network input, of the shape and type of images, from images in [0,1]."""
        return (images - self.mean) / self.std

    def to_dict(self) -> dict[str, Any]:
        """As plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Inverse of to_dict."""
        percentiles = values["percentiles"]
        return cls(**{**values, "percentiles": None if percentiles is None else tuple(percentiles)})
