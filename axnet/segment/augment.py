"""Augmentation of the segmenter's training images: image and organ masks move together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.segment.anatomy import MIRRORED_ORGANS

_DEGREES, _ZOOM, _SHIFT = 11.0, 0.15, 0.06  # largest rotation, relative zoom, shift as a share of the side
_BEND = 0.01  # standard deviation of a smooth displacement, as a share of the side
_GAMMA, _GAIN, _NOISE = 0.7, 0.7, 0.1  # largest |log gamma|, |log contrast|, standard deviation of the noise
_SHADE = 0.25  # standard deviation of a smooth change of brightness, as of a grid, a device or a dense lung
_INVERTED = 0.1  # share of films shown as negatives


def augment(image: Tensor, mask: Tensor, mirror: float = 0.0, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Move and bend a batch with its organ masks; change gamma, contrast, shading, polarity and noise of the images.

    image: float32 [N, 1, H, W] in [0, 1]; mask: float32 [N, 3, H, W] in the order of ORGANS; mirror: chance of a
    left-right mirror, after which the lungs change names, so that a name always belongs to a side of the image;
    strength: of the bend and of all changes of the images, 0 for none.
    Returns both in the same shapes and ranges; no organ is outside the image. Draws from torch's global generator.
    """
    count, device = len(image), image.device

    def signed(reach: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(-reach, reach)

    mirrored = torch.rand(count, device=device) < mirror
    side = torch.where(mirrored, -1.0, 1.0)
    angle, zoom = torch.deg2rad(signed(_DEGREES)), 1 + signed(_ZOOM)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    top = torch.stack((cos * side, -sin * side, signed(2 * _SHIFT)), dim=1)
    bottom = torch.stack((sin, cos, signed(2 * _SHIFT)), dim=1)
    both = torch.cat((image, torch.where(mirrored.view(-1, 1, 1, 1), mask[:, MIRRORED_ORGANS], mask)), dim=1)
    with torch.autocast(device.type, enabled=False):  # bfloat16 is too coarse for places
        grid = F.affine_grid(torch.stack((top, bottom), dim=1), list(both.shape), align_corners=False)
    bend = F.interpolate(torch.randn(count, 2, 5, 5, device=device), size=image.shape[2:], mode="bicubic")
    grid = grid + 2 * strength * _BEND * bend.permute(0, 2, 3, 1)
    both = F.grid_sample(both, grid, align_corners=False)
    image, mask = both[:, :1], both[:, 1:]
    gamma = (strength * signed(_GAMMA)).exp().view(-1, 1, 1, 1)
    gain = (strength * signed(_GAIN)).exp().view(-1, 1, 1, 1)
    shade = F.interpolate(torch.randn(count, 1, 4, 4, device=device), size=image.shape[2:], mode="bicubic")
    share = strength * torch.rand(count, 1, 1, 1, device=device)
    image = (image.clamp(1e-4, 1) ** gamma - 0.5) * gain + 0.5 + share * _SHADE * shade
    image = image + share.flip(0) * _NOISE * torch.randn_like(image)
    negative = torch.rand(count, 1, 1, 1, device=device) < strength * _INVERTED
    return torch.where(negative, 1 - image, image).clamp(0, 1), mask
