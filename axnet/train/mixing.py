"""What is done to the labels of a training batch: smoothing, and mixup of images, masks and labels."""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed(labels: Tensor, amount: float) -> Tensor:
    """Labels moved towards one half: y (1 - amount) + amount / 2 (Szegedy et al., CVPR 2016); NaN stays NaN.

    labels: [N,K] in [0,1], or NaN for unknown; amount: in [0,1).
    """
    return labels if amount == 0 else labels * (1 - amount) + amount / 2


def mixed(batch: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """A batch of which each film is blended with another one's: mixup (Zhang et al., ICLR 2018).

    batch: float "image" [N,C,H,W], "mask" [N,A,H,W] and "label" [N,K], which are all blended alike, by one share drawn
    from Beta(alpha, alpha); the rest is left. A label that is NaN, unknown, in either film is NaN in the blend, so it
    is left out of the loss.
    """
    image = batch["image"]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(image), device=image.device)
    blended = {name: torch.lerp(batch[name][partner], batch[name], share) for name in ("image", "mask", "label")}
    return {**batch, **blended}
