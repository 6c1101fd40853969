from __future__ import annotations

import pytest
import torch

from axnet.segment import augment as module
from axnet.segment.augment import augment
from axnet.segment.segmenter import _moved


@pytest.fixture
def plain(monkeypatch):
    """Grey values from which a square can be told by a threshold."""
    for name in ("_SHADE", "_INVERTED", "_NOISE", "_GAMMA"):
        monkeypatch.setattr(module, name, 0.0)


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square on the image's left, that is the right lung, and a smaller one on its right."""
    mask = torch.zeros(16, 3, 64, 64)
    mask[:, 1, 20:44, 12:28] = 1
    mask[:, 0, 26:38, 38:48] = 1
    return mask.sum(1, keepdim=True), mask


def side(mask: torch.Tensor) -> torch.Tensor:
    """Mean column of each mask, from -1 to 1."""
    return (mask * torch.linspace(-1, 1, mask.shape[-1])).sum((1, 2)) / mask.sum((1, 2))


def test_image_and_mask_move_together(plain):
    torch.manual_seed(0)
    image, mask = drawn()
    moved, organs = augment(image, mask)
    assert moved.shape == image.shape
    assert organs.shape == mask.shape
    assert 0 <= moved.min() <= moved.max() <= 1
    assert 0 <= organs.min() <= organs.max() <= 1
    wanted = organs.sum(1) > 0.5
    agreement = ((moved[:, 0] > 0.5) == wanted).float().mean((1, 2))
    assert agreement.min() > 0.99
    assert not torch.equal(organs, mask)


def test_a_bend_is_no_affine_map(plain, monkeypatch):
    for name in ("_DEGREES", "_ZOOM", "_SHIFT"):
        monkeypatch.setattr(module, name, 0.0)
    uneven = []
    for bend in (0.0, 0.03):
        monkeypatch.setattr(module, "_BEND", bend)
        torch.manual_seed(0)
        height = (augment(*drawn())[1][:, 1] > 0.5).sum(1).float()  # of the right lung, column by column
        uneven.append(height[:, 14:26].std(1))
    assert uneven[0].max() == 0
    assert (uneven[1] > 0.3).float().mean() > 0.5


def test_a_mirror_keeps_each_name_on_its_side(plain):
    torch.manual_seed(0)
    image, mask = drawn()
    moved, organs = augment(image, mask, mirror=1.0)
    assert (side(organs[:, 1]) < 0).all()  # the right lung stays on the image's left ...
    assert (side(organs[:, 0]) > 0).all()
    area = organs.sum((2, 3))
    assert (area[:, 0] > area[:, 1]).all()  # ... though it is the smaller square now
    assert (((moved[:, 0] > 0.5) == (organs.sum(1) > 0.5)).float().mean((1, 2)) > 0.99).all()


def test_without_a_mirror_sizes_keep_their_names():
    torch.manual_seed(0)
    area = augment(*drawn(), mirror=0.0)[1].sum((2, 3))
    assert (area[:, 1] > area[:, 0]).all()


def test_strength_scales_what_happens_to_the_grey_values():
    image = torch.full((64, 1, 32, 32), 0.4)
    image[:, :, :16] = 0.6
    changes = []
    for strength in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        moved = augment(image, image.new_zeros(64, 3, 32, 32), strength=strength)[0]
        changes.append((moved - image)[:, :, 12:14, 14:18].abs().mean())  # within the upper half on every film
    assert changes[0] < 0.01
    assert 3 * changes[0] < changes[1] < 0.6 * changes[2]


def test_some_films_become_negatives(monkeypatch):
    monkeypatch.setattr(module, "_SHADE", 0.0)
    torch.manual_seed(0)
    image, mask = (t.repeat(32, 1, 1, 1) for t in drawn())
    negative = (augment(image, mask)[0][:, 0, 0, 0] > 0.5).float()  # the background, else black
    assert 0.05 < negative.mean() < 0.15


def test_mixed_precision_leaves_places_alone() -> None:
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 3, 64, 64)
    torch.manual_seed(3)
    plain = augment(image, mask)
    moved = _moved(image)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        again = augment(image, mask)
        assert torch.equal(_moved(image), moved)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
