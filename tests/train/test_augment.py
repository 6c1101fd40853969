from __future__ import annotations

import pytest
import torch

from axnet.train import Augmentation


def disc(count: int, size: int = 64) -> torch.Tensor:
    """A soft disc off the centre, [N,1,S,S]."""
    line = torch.linspace(-1, 1, size)
    distance = ((line[None] - 0.3) ** 2 + (line[:, None] + 0.2) ** 2).sqrt()
    return (1 - distance * 2).clamp(0, 1).expand(count, 1, size, size).clone()


def test_image_and_mask_move_together() -> None:
    torch.manual_seed(0)
    image = disc(16)
    moved, mask = Augmentation(30, 0.2, 0.3, 0.0, 0.5)(image, image.clone())
    assert torch.allclose(moved, mask, atol=1e-6)
    assert (moved - image).abs().amax((1, 2, 3)).min() > 0.05


def test_each_image_moves_its_own_way() -> None:
    torch.manual_seed(0)
    moved, _ = Augmentation()(disc(4), disc(4))
    assert (moved[0] - moved[1]).abs().max() > 0.05


def test_contrast_leaves_the_mask() -> None:
    torch.manual_seed(0)
    image = disc(4)
    changed, mask = Augmentation(0, 0, 0, 0.5, 0)(image, image.clone())
    assert torch.allclose(mask, image, atol=1e-5)
    assert (changed - image).abs().max() > 0.02
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_what_is_not_moved_stays_as_sharp_as_it_was() -> None:
    torch.manual_seed(0)
    image, mask = torch.rand(200, 1, 16, 16), torch.rand(200, 2, 16, 16)
    moved, moved_mask = Augmentation(30, 0.2, 0.3, 0.0, 0.0, moved=0.5)(image, mask)
    same = (moved - image).abs().amax((1, 2, 3)) < 1e-4
    assert torch.equal(same, (moved_mask - mask).abs().amax((1, 2, 3)) < 1e-4)
    assert 60 < same.sum() < 140
    mirrored, _ = Augmentation(30, 0.2, 0.3, 0.0, 1.0, moved=0.0)(image, mask)
    assert torch.allclose(mirrored, image.flip(-1), atol=1e-4)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_is_a_mirror(flip: float) -> None:
    image = disc(3)
    moved, mask = Augmentation(0, 0, 0, 0, flip)(image, image.clone())
    expected = image.flip(-1) if flip else image
    assert torch.allclose(moved, expected, atol=1e-5)
    assert torch.allclose(mask, expected, atol=1e-5)


def test_without_flip_left_stays_left() -> None:
    torch.manual_seed(1)
    moved, _ = Augmentation()(disc(64), disc(64))
    right_heavy = moved[..., 32:].sum((1, 2, 3)) > moved[..., :32].sum((1, 2, 3))
    assert right_heavy.all()


@pytest.mark.parametrize(
    ("name", "value"), [("degrees", 200), ("translate", -0.1), ("scale", 1), ("flip", 2), ("moved", 1.5)]
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, expected a number from 0 to"):
        Augmentation(**{name: value})
