from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from axnet.models import AnatomyXNet, Preprocessing, load_classifier
from axnet.train import Augmentation, DataConfig, FitConfig, XraySet, fit, open_part
from axnet.train.precise_bn import films_as_read, precise_bn, with_precise_bn

STILL = Preprocessing(size=32, mean=0.5, std=0.25)


@pytest.fixture(scope="module")
def sets() -> tuple[XraySet, XraySet]:
    data = open_part(DataConfig(train_images=60, workers=0), "train", Preprocessing(size=32))
    return data.split_by_patient(0.25)


def network() -> AnatomyXNet:
    torch.manual_seed(0)
    return AnatomyXNet(3, backbone="tiny", reduction=0.25, num_maps="classes")


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_every_normalisation_gets_the_mean_of_its_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(4))
    batches = [torch.randn(6, 1, 9, 9) * scale for scale in (1.0, 3.0, 5.0)]
    model[1].running_mean.fill_(9)
    precise_bn(_OfImages(model), [(batch, batch) for batch in batches])
    seen = [model[0](batch).detach() for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(model[3].running_var, torch.ones(4), rtol=0.01, atol=0)  # nothing was dropped
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)
    assert not any(module.training for module in model.modules())


def test_attention_gets_its_statistics() -> None:
    """From its kernels as from the layer that they stand for, which is called where something hangs on it."""
    films = [(torch.randn(8, 1, 64, 64), torch.rand(8, 2, 64, 64)) for _ in range(2)]
    fused, called = network(), network()
    for norm in norms(called):
        norm.register_forward_hook(lambda *_: None)
    for model in (fused, called):
        precise_bn(model, films)
    assert any("attention" in name for name, _ in fused.named_buffers() if name.endswith("running_mean"))
    for (name, value), other in zip(fused.named_buffers(), called.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)
    assert all(norm.running_mean.abs().max() > 0 for norm in norms(fused))


def test_without_a_batch_nothing_changes() -> None:
    model = network()
    model.train()
    model(torch.randn(4, 1, 64, 64), torch.rand(4, 2, 64, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    precise_bn(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert norms(model)[0].momentum == 0.1


def test_films_come_once_and_as_they_are_read(sets: tuple[XraySet, XraySet]) -> None:
    train, like = sets[0].subset(range(45)), torch.zeros(1, dtype=torch.float64)
    pairs = list(films_as_read(train, STILL, 45, 8, 3, like))
    assert [len(image) for image, _ in pairs] == [8] * 5
    assert {part.dtype for pair in pairs for part in pair} == {torch.float64}
    images = torch.cat([image for image, _ in pairs]).flatten(1)
    stored = STILL.normalize(train.images.float() / 255).double().flatten(1)
    where = [int((stored == image).all(1).nonzero()[0]) for image in images]
    assert len(set(where)) == 40
    masks = torch.cat([mask for _, mask in pairs])
    torch.testing.assert_close(masks, train.masks[where].double() / 255, atol=1e-7, rtol=0)
    assert [len(image) for image, _ in films_as_read(train, STILL, 5, 8, 3, like)] == [5]
    assert sum(len(image) for image, _ in films_as_read(train, STILL, 10**6, 15, 3, like)) == 45
    again = next(films_as_read(train, STILL, 45, 8, 4, like))[0]
    assert not torch.equal(again, pairs[0][0])


@pytest.mark.parametrize("select", ["best", "last"])
def test_a_run_keeps_the_better_statistics(tmp_path: Path, sets: tuple[XraySet, XraySet], select: str) -> None:
    """And the last run's in any case; its weights and checkpoints are those of a run without."""
    settings = {
        "epochs": 2,
        "batch_size": 16,
        "accelerator": "cpu",
        "progress": False,
        "select": select,
        "options": {"backbone": "tiny", "reduction": 0.25},
        "augmentation": Augmentation(gamma=1.0, blur=2.0),
    }
    plain = fit(FitConfig(out=str(tmp_path / "plain"), precise_bn=0, **settings), *sets)
    taken = fit(FitConfig(out=str(tmp_path / "taken"), precise_bn=32, **settings), *sets)
    assert (plain.precise_bn, plain.other_auc != plain.other_auc) == (False, True)
    assert {taken.val_auc, taken.other_auc} >= {plain.val_auc}
    assert taken.precise_bn == (select == "last" or taken.val_auc != plain.val_auc)
    assert select == "last" or taken.val_auc >= taken.other_auc
    for one, other in zip(plain.model.parameters(), taken.model.parameters(), strict=True):
        assert torch.equal(one, other)
    differs = any(
        not torch.equal(a.running_mean, b.running_mean)
        for a, b in zip(norms(plain.model), norms(taken.model), strict=True)
    )
    assert differs == taken.precise_bn
    assert load_classifier(taken.weights)[1].training["precise_bn"] == (32 if taken.precise_bn else 0)
    kept = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("plain", "taken")]
    assert all(torch.equal(value, kept[1]["state_dict"][name]) for name, value in kept[0]["state_dict"].items())


def test_worse_statistics_are_put_back(sets: tuple[XraySet, XraySet]) -> None:
    train, validation = sets
    model = network()
    model.eval()
    options = {"films": 32, "batch_size": 16, "seed": 0}
    labelled = replace(validation, labels=validation.labels[:, :3], findings=validation.findings[:3])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = with_precise_bn(model, STILL, train, labelled, 1.0, always=False, **options)
    assert (kept.precise, kept.val_auc) == (False, 1.0)
    assert 0 < kept.other_auc < 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    forced = with_precise_bn(model, STILL, train, labelled, 1.0, always=True, **options)
    assert (forced.precise, forced.val_auc, forced.other_auc) == (True, kept.other_auc, 1.0)
    assert with_precise_bn(model, STILL, train, None, float("nan"), always=False, **options).precise


def test_a_network_without_normalisation_is_left(sets: tuple[XraySet, XraySet]) -> None:
    kept = with_precise_bn(nn.Conv2d(1, 1, 1), STILL, *sets, 0.7, films=32, batch_size=16, seed=0, always=True)
    assert (kept.precise, kept.val_auc) == (False, 0.7)


class _OfImages(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.network(image)
