"""Parts of the recipe by themselves: mixup, balanced sampling, learning rates by layer, loggers, augmentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from axnet.models import AnatomyXNet
from axnet.train import Augmentation
from axnet.train.groups import parameter_groups, parts
from axnet.train.loggers import checked_loggers, loggers
from axnet.train.mixing import mixed
from axnet.train.sampling import WeightedSampler, class_balanced


def test_mixup_blends_image_mask_and_label_alike() -> None:
    torch.manual_seed(0)
    films = torch.arange(6.0)
    batch = {
        "image": films.view(-1, 1, 1, 1).expand(6, 1, 4, 4),
        "mask": films.view(-1, 1, 1, 1).expand(6, 2, 4, 4),
        "label": films.view(-1, 1).expand(6, 3),
        "index": torch.arange(6),
    }
    blend = mixed(batch, 1.0)
    value = blend["label"][:, 0]
    assert torch.equal(blend["index"], batch["index"])
    assert not torch.allclose(value, films)
    for name in ("image", "mask", "label"):
        assert blend[name].shape == batch[name].shape
        torch.testing.assert_close(blend[name].flatten(1), value[:, None].expand_as(blend[name].flatten(1)))
    share = (value.sum() - 0) / films.sum()  # a permutation keeps the sum
    assert share == pytest.approx(1)


def test_a_blend_with_an_unknown_label_is_unknown() -> None:
    label = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    batch = {"image": torch.rand(2, 1, 2, 2), "mask": torch.rand(2, 2, 2, 2), "label": label}
    for seed in range(8):
        torch.manual_seed(seed)
        blend = mixed(batch, 0.4)["label"]
        swapped = not torch.equal(blend[:, 0], label[:, 0])
        assert blend[:, 1].isnan().tolist() == [True, swapped]


def test_balanced_sampling_shows_each_finding_alike() -> None:
    labels = torch.zeros(1000, 3)
    labels[:300, 0] = 1
    labels[300:310, 1] = 1
    labels[5, 2] = torch.nan  # unknown is no positive, and finding 2 has none at all
    chance = class_balanced(labels)
    assert chance.sum() == pytest.approx(1)
    assert chance[:300].sum() == pytest.approx(1 / 3)
    assert chance[300:310].sum() == pytest.approx(1 / 3)
    assert chance[310:].sum() == pytest.approx(1 / 3)
    several = class_balanced(torch.tensor([[1.0, 1], [1, 0], [0, 0.9], [0, torch.nan]]))
    assert several.tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_processes_share_one_draw(recwarn: pytest.WarningsRecorder) -> None:
    chance = class_balanced(torch.eye(7).repeat(9, 1)[:61])
    data = list(range(61))
    alone, first, second = (
        WeightedSampler(data, chance, replicas, rank, seed=4, drop_last=True)  # type: ignore[arg-type]
        for replicas, rank in ((1, 0), (2, 0), (2, 1))
    )
    drawn = {}
    for epoch in (0, 1):
        for sampler in (alone, first, second):
            sampler.set_epoch(epoch)
        whole = list(alone)
        assert list(alone) == whole
        assert [len(list(first)), len(list(second)), len(first)] == [30, 30, 30]
        assert [film for pair in zip(first, second, strict=True) for film in pair] == whole[:60]
        drawn[epoch] = whole
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("backbone", ["densenet121", "tiny", "efficientnet_lite0"])
def test_layer_decay_gives_every_part_its_rate(backbone: str) -> None:
    if backbone.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch")
    model = AnatomyXNet(3, backbone=backbone, reduction=0.0625)
    found = parts(model.backbone)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {rate[id(p)] for p in (*model.attention.parameters(), *model.classifier.parameters())} == {1.0}
    for depth, part in enumerate(reversed(found), start=1):
        assert {rate[id(p)] for module in part for p in module.parameters()} == {0.5**depth}
    assert len(found) >= 5
    order = [id(p) for part in found for module in part for p in module.parameters()]
    assert order == [id(p) for p in model.backbone.parameters()]  # from the image on, none left out


def test_without_layer_decay_the_groups_are_the_two_of_before() -> None:
    model = AnatomyXNet(3, backbone="tiny", reduction=0.25)
    weights, biases = parameter_groups(model, lr=0.1, weight_decay=0.5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.5, 0.0)
    assert weights["lr"] == biases["lr"] == 0.1
    assert all(p.ndim > 1 for p in weights["params"])
    assert {id(p) for p in weights["params"] + biases["params"]} == {id(p) for p in model.parameters()}


def test_parts_of_any_module() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.Conv2d(2, 4, 3))
            )

    assert [[type(m).__name__ for m in part] for part in parts(Around())] == [["Conv2d", "BatchNorm2d"], ["Conv2d"]]


def test_exposure_changes_leave_the_mask_and_the_range() -> None:
    torch.manual_seed(0)
    image = torch.rand(6, 1, 40, 40)
    for settings in ({"gamma": 1.0}, {"noise": 0.2}, {"blur": 2.0}, {"erase": 1.0}):
        augment = Augmentation(0, 0, 0, 0, 0, **settings)
        changed, mask = augment(image, image.clone())
        torch.testing.assert_close(mask, image, atol=1e-5, rtol=0)
        assert (changed - image).abs().amax((1, 2, 3)).min() > 0.005, settings
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_mixed_precision_leaves_augmentation_alone() -> None:
    image = torch.rand(2, 1, 64, 64)
    augment = Augmentation(gamma=0.5, noise=0.1, blur=1.0, erase=0.5)
    torch.manual_seed(3)
    plain = augment(image, image)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        again = augment(image, image)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_blur_keeps_a_flat_film_and_takes_a_point_apart() -> None:
    torch.manual_seed(1)
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1
    blurred, _ = Augmentation(0, 0, 0, 0, 0, blur=2.0)(point, point)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(blurred, blurred.transpose(2, 3), atol=1e-6, rtol=0)
    flat, _ = Augmentation(0, 0, 0, 0, 0, blur=2.0)(torch.full((2, 1, 9, 9), 0.3), point[..., :9, :9])
    torch.testing.assert_close(flat[..., 2:-2, 2:-2], torch.full((2, 1, 5, 5), 0.3), atol=1e-4, rtol=0)


def test_erased_rectangles_have_the_size_that_they_say() -> None:
    torch.manual_seed(2)
    image = torch.rand(64, 1, 100, 100)
    changed, _ = Augmentation(0, 0, 0, 0, 0, erase=1.0)(image, image)
    share = (changed - image).abs().gt(1e-3).float().mean((1, 2, 3))
    assert float(share.min()) > 0.01
    assert float(share.max()) < 0.22
    kept, _ = Augmentation(0, 0, 0, 0, 0, erase=1e-9)(image, image)
    torch.testing.assert_close(kept, image, atol=1e-3, rtol=0)


def test_loggers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_loggers(("csv", "tensorboard", "csv")) == ("csv", "tensorboard")
    made = loggers(("tensorboard", "csv", "csv"), tmp_path, {})  # two would write one file
    assert [type(one).__name__ for one in made] == ["TensorBoardLogger", "CSVLogger"]
    assert all(one.log_dir == str(tmp_path / "logs") for one in made)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ModuleNotFoundError, match=rf"logger '{name}' needs the package '{name}': pip install 'axn"):
            checked_loggers((name,))
