"""Augmentation of a batch on its own device: one affine map and one exposure change per image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.precision import float32_by_default


@dataclass(frozen=True)
class Augmentation:
    """How far training images may be moved; image and mask always move together.

    degrees: largest rotation. translate: largest shift, as a share of the side. scale: largest relative zoom.
    contrast: largest relative change of contrast. gamma: largest exponent of an exposure change, as a power of two:
        with 1 grey values are taken to a power from 1/2 to 2. noise: largest standard deviation of Gaussian noise;
        blur: largest standard deviation of a Gaussian blur in pixels. All four change the image only.
    erase: chance that a rectangle of 2 to 20 % of the image becomes its mean (Zhong et al., AAAI 2020); the masks stay,
        as behind a device.
    moved: chance that a film is rotated, shifted and zoomed at all. What is moved is interpolated, and so blurred: a
        network that never saw films as sharp as those that it will read has other statistics than they have.
    flip: chance of a left-right mirror. It is 0 by default, since the heart's side is part of the anatomy; the mask's
        channels (lungs, heart) name no side, so a mirrored mask keeps its channels.
    Raises ValueError for numbers out of range.
    """

    degrees: float = 7.0
    translate: float = 0.05
    scale: float = 0.1
    contrast: float = 0.2
    flip: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    moved: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, top in (
            ("degrees", self.degrees, 180.0),
            ("translate", self.translate, 1.0),
            ("scale", self.scale, 0.9),
            ("contrast", self.contrast, 1.0),
            ("flip", self.flip, 1.0),
            ("gamma", self.gamma, 2.0),
            ("noise", self.noise, 1.0),
            ("blur", self.blur, 10.0),
            ("erase", self.erase, 1.0),
            ("moved", self.moved, 1.0),
        ):
            if not 0 <= value <= top:
                raise ValueError(f"{name} is {value}, expected a number from 0 to {top}.")

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch: image float32 [N,C,H,W] in [0,1] and mask float32 [N,A,H,W]; outside the image is black.

        In float32 whatever the precision of the network: in bfloat16, neighbours on a side of 512 would fall together.
        """
        with torch.autocast(image.device.type, enabled=False), float32_by_default():
            return self._changed(image, mask)

    def _changed(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count, device = len(image), image.device
        theta = self._affine(count, device)
        both = torch.cat((image, mask.to(image.dtype)), dim=1)
        grid = F.affine_grid(theta, list(both.shape), align_corners=False)
        moved = F.grid_sample(both, grid, align_corners=False)
        channels = image.shape[1]
        image, mask = moved[:, :channels], moved[:, channels:]
        gain = 1 + self.contrast * _signed(count, device).view(-1, 1, 1, 1)
        centre = image.mean((1, 2, 3), keepdim=True)
        return self._exposed(((image - centre) * gain + centre).clamp(0, 1)), mask

    def _exposed(self, image: Tensor) -> Tensor:
        """What is off draws no random number, so that a run without it stays what it was."""
        count, device = len(image), image.device
        if self.gamma:
            image = image ** torch.exp2(self.gamma * _signed(count, device)).view(-1, 1, 1, 1)
        if self.blur:
            image = _blurred(image, self.blur * torch.rand(count, device=device))
        if self.noise:
            strength = self.noise * torch.rand(count, device=device).view(-1, 1, 1, 1)
            image = (image + strength * torch.randn_like(image)).clamp(0, 1)
        if self.erase:
            image = _erased(image, torch.rand(count, device=device) < self.erase)
        return image

    def _affine(self, count: int, device: torch.device) -> Tensor:
        angle = math.radians(self.degrees) * _signed(count, device)
        zoom = 1 + self.scale * _signed(count, device)
        mirror = 1 - 2 * (torch.rand(count, device=device) < self.flip).to(torch.float32)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = 2 * self.translate * torch.stack((_signed(count, device), _signed(count, device)))
        if self.moved < 1:
            still = torch.rand(count, device=device) >= self.moved
            cos, sin, shift = torch.where(still, 1.0, cos), sin.where(~still, 0.0), shift.where(~still, 0.0)
        top = torch.stack((cos * mirror, -sin, shift[0]), dim=1)
        bottom = torch.stack((sin * mirror, cos, shift[1]), dim=1)
        return torch.stack((top, bottom), dim=1)  # [N, 2, 3]


def _signed(count: int, device: torch.device) -> Tensor:
    return 2 * torch.rand(count, device=device) - 1


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Each image [N,C,H,W] under its own Gaussian, sigma [N] in pixels, edges repeated."""
    count, channels, height, width = image.shape
    reach = min(math.ceil(3 * float(sigma.max())), height - 1, width - 1)
    offset = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # [N*C, 1, 2*reach+1]
    x = F.pad(image.reshape(1, count * channels, height, width), (reach,) * 4, mode="replicate")
    x = F.conv2d(x, weight[:, :, None], groups=count * channels)
    x = F.conv2d(x, weight[..., None], groups=count * channels)
    return x.reshape(image.shape)


def _erased(image: Tensor, chosen: Tensor) -> Tensor:
    """The chosen images with a rectangle of their mean grey value: 2 to 20 % of the area, sides 1:2 to 2:1."""
    count, device = len(image), image.device
    area = 0.02 + 0.18 * torch.rand(count, device=device)
    ratio = torch.exp2(_signed(count, device))
    inside = chosen.view(-1, 1, 1)
    for axis, side in ((1, (area * ratio).sqrt()), (2, (area / ratio).sqrt())):
        size = image.shape[axis + 1]
        start = torch.rand(count, device=device) * (1 - side)
        place = (torch.arange(size, device=device) + 0.5) / size
        along = (place >= start[:, None]) & (place < (start + side)[:, None])
        inside = inside & (along[:, :, None] if axis == 1 else along[:, None, :])
    return torch.where(inside[:, None], image.mean((1, 2, 3), keepdim=True), image)
