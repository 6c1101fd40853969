"""Augmentation of a batch on its own device: one affine map and one exposure change per image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """How far training images may be moved; image and mask always move together.

    degrees: largest rotation. translate: largest shift, as a share of the side. scale: largest relative zoom.
    contrast: largest relative change of contrast (of the image only).
    flip: chance of a left-right mirror. It is 0 by default, since the heart's side is part of the anatomy; the mask's
        channels (lungs, heart) name no side, so a mirrored mask keeps its channels.
    Raises ValueError for numbers out of range.
    """

    degrees: float = 7.0
    translate: float = 0.05
    scale: float = 0.1
    contrast: float = 0.2
    flip: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, top in (
            ("degrees", self.degrees, 180.0),
            ("translate", self.translate, 1.0),
            ("scale", self.scale, 0.9),
            ("contrast", self.contrast, 1.0),
            ("flip", self.flip, 1.0),
        ):
            if not 0 <= value <= top:
                raise ValueError(f"{name} is {value}, expected a number from 0 to {top}.")

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch: image float32 [N,C,H,W] in [0,1] and mask float32 [N,A,H,W]; outside the image is black."""
        count, device = len(image), image.device
        theta = self._affine(count, device)
        both = torch.cat((image, mask.to(image.dtype)), dim=1)
        grid = F.affine_grid(theta, list(both.shape), align_corners=False)
        moved = F.grid_sample(both, grid, align_corners=False)
        channels = image.shape[1]
        image, mask = moved[:, :channels], moved[:, channels:]
        gain = 1 + self.contrast * _signed(count, device).view(-1, 1, 1, 1)
        centre = image.mean((1, 2, 3), keepdim=True)
        return ((image - centre) * gain + centre).clamp(0, 1), mask

    def _affine(self, count: int, device: torch.device) -> Tensor:
        angle = math.radians(self.degrees) * _signed(count, device)
        zoom = 1 + self.scale * _signed(count, device)
        mirror = 1 - 2 * (torch.rand(count, device=device) < self.flip).to(torch.float32)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = 2 * self.translate * torch.stack((_signed(count, device), _signed(count, device)))
        top = torch.stack((cos * mirror, -sin, shift[0]), dim=1)
        bottom = torch.stack((sin * mirror, cos, shift[1]), dim=1)
        return torch.stack((top, bottom), dim=1)  # [N, 2, 3]


def _signed(count: int, device: torch.device) -> Tensor:
    return 2 * torch.rand(count, device=device) - 1
