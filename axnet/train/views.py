"""Test-time augmentation: a film seen several times, a little moved and zoomed, and its logits averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Views:
    """How a film is seen.

    shifts: as shares of the side; for each the film moves left, right, up and down. scales: of the film about its
    centre. flip: whether each of these is also seen mirrored; not by default, since the heart has a side.
    The film as it is always is the first view. Raises ValueError for numbers out of range.
    """

    shifts: tuple[float, ...] = (0.03,)
    scales: tuple[float, ...] = (0.95, 1.05)
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for shift in self.shifts:
            if not 0 < shift <= 0.5:
                raise ValueError(f"shifts has {shift}, expected shares of the side above 0 and up to 0.5.")
        for scale in self.scales:
            if not 0.5 <= scale <= 2 or scale == 1:
                raise ValueError(f"scales has {scale}, expected factors from 0.5 to 2 other than 1.")

    def __len__(self) -> int:
        """Number of views."""
        return (1 + 4 * len(self.shifts) + len(self.scales)) * (2 if self.flip else 1)

    def of(self, image: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The views of a batch one after another: image float [N,C,H,W] and mask float [N,A,h,w], moved together.

        What comes in from outside repeats the edge of the image and is outside every organ.
        """
        moves = [(1.0, 0.0, 0.0)]
        for shift in self.shifts:
            moves += [(1.0, shift, 0.0), (1.0, -shift, 0.0), (1.0, 0.0, shift), (1.0, 0.0, -shift)]
        moves += [(scale, 0.0, 0.0) for scale in self.scales]
        for move in moves:
            seen = (image, mask) if move == moves[0] else _moved(image, mask, *move)
            yield seen
            if self.flip:
                yield seen[0].flip(-1), seen[1].flip(-1)


def _moved(image: Tensor, mask: Tensor, scale: float, right: float, down: float) -> tuple[Tensor, Tensor]:
    theta = torch.tensor([[[1 / scale, 0, -2 * right / scale], [0, 1 / scale, -2 * down / scale]]], device=image.device)

    def sample(values: Tensor, padding: str) -> Tensor:
        grid = F.affine_grid(theta.expand(len(values), -1, -1), list(values.shape), align_corners=False)
        return F.grid_sample(values, grid.to(values.dtype), padding_mode=padding, align_corners=False)

    return sample(image, "border"), sample(mask, "zeros")
