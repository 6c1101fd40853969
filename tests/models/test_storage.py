from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from axnet import checkpoint
from axnet.models import AnatomyXNet, DenseNetGAP, Preprocessing, build_classifier, load_classifier, save_classifier

CLASSES = ("Mass", "Nodule", "Effusion")
PREPROCESSING = Preprocessing(size=64, percentiles=(2.0, 98.0), mean=0.4, std=0.2)


class OneMap(nn.Module):
    channels = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image)]


def models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        AnatomyXNet(3, 2, "tiny", reduction=0.25, num_maps="classes", fusion="concat", stages=(1, 3)),
        DenseNetGAP(3, "tiny", in_channels=3),
    ]


@pytest.mark.parametrize("model", models(), ids=["anatomy-xnet", "densenet-gap"])
def test_round_trip(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model.safetensors"
    model.train()
    save_classifier(path, model, PREPROCESSING, CLASSES, {"epochs": 3})
    assert model.training
    loaded, info = load_classifier(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert info.classes == CLASSES
    assert info.preprocessing == PREPROCESSING
    assert info.training == {"epochs": 3}
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    assert torch.equal(loaded(image, mask).logits, model.eval()(image, mask).logits)


def test_the_callers_random_numbers_go_on(tmp_path: Path) -> None:
    model = models()[0]
    before = torch.get_rng_state()
    save_classifier(tmp_path / "m.safetensors", model, PREPROCESSING, CLASSES)
    load_classifier(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_own_backbone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = AnatomyXNet(3, 2, OneMap())
    save_classifier(path, model, PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="was built on a custom backbone, expected it as backbone="):
        load_classifier(path)
    loaded, _ = load_classifier(path, backbone=OneMap())
    assert torch.equal(loaded.backbone.conv.weight, model.backbone.conv.weight)
    save_classifier(path, models()[1], PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="has backbone 'tiny', expected no backbone="):
        load_classifier(path, backbone=OneMap())


def test_other_outputs_than_when_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, models()[0], PREPROCESSING, CLASSES)
    state, metadata = checkpoint.load(path, "classifier")
    state["classifier.weight"] = state["classifier.weight"] + 0.05
    checkpoint.save(path, state, metadata)
    with pytest.raises(ValueError, match="fingerprint"):
        load_classifier(path)


@pytest.mark.parametrize("damage", ["missing", "left over", "has shape"])
def test_weights_of_another_architecture(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, models()[1], PREPROCESSING, CLASSES)
    state, metadata = checkpoint.load(path, "classifier")
    if damage == "missing":
        del state["classifier.bias"]
    elif damage == "left over":
        state["head.bias"] = torch.zeros(3)
    else:
        state["classifier.bias"] = torch.zeros(4)
    checkpoint.save(path, state, metadata)
    with pytest.raises(ValueError, match=f"other weights than its architecture: '.*' (is )?{damage}"):
        load_classifier(path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is Linear, expected AnatomyXNet or DenseNetGAP"):
        save_classifier(tmp_path / "a.safetensors", nn.Linear(1, 1), PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="classes has 1 names, the model has 3 logits"):
        save_classifier(tmp_path / "a.safetensors", models()[1], PREPROCESSING, ("Mass",))


def test_build_errors() -> None:
    with pytest.raises(ValueError, match="architecture is 'vit', expected one of"):
        build_classifier("vit", {})
    with pytest.raises(ValueError, match="does not fit architecture 'densenet-gap'"):
        build_classifier("densenet-gap", {"num_maps": 3})


def test_preprocessing() -> None:
    image = np.linspace(0.2, 0.8, 64 * 64, dtype=np.float32).reshape(64, 64)
    stored = PREPROCESSING.store(image)
    assert stored.dtype == np.uint8
    assert (stored.min(), stored.max()) == (0, 255)
    plain = Preprocessing(size=32, percentiles=None).store(image)
    assert plain.shape == (32, 32)
    assert abs(float(plain.mean()) - 0.5 * 255) < 1
    normal = PREPROCESSING.normalize(torch.tensor([0.0, 1.0]))
    assert normal.tolist() == pytest.approx([-2.0, 3.0])
    assert Preprocessing.from_dict(PREPROCESSING.to_dict()) == PREPROCESSING
    assert Preprocessing.from_dict(Preprocessing(percentiles=None).to_dict()).percentiles is None


def answers(model: nn.Module, channels: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    parameter = next(model.parameters())
    image, mask = torch.rand(2, channels, 64, 64, generator=draw), torch.rand(2, 2, 64, 64, generator=draw)
    with torch.no_grad():
        return model.eval()(image.to(parameter), mask.to(parameter)).logits.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("which", [0, 1], ids=["anatomy-xnet", "densenet-gap"])
def test_other_types_are_kept_in_the_file_and_loaded_in_float32(tmp_path: Path, dtype: torch.dtype, which: int) -> None:
    path = tmp_path / "model.safetensors"
    model = models()[which].to(dtype)
    save_classifier(path, model, PREPROCESSING, CLASSES)
    assert checkpoint.load(path, "classifier")[0]["classifier.weight"].dtype is dtype
    loaded, _ = load_classifier(path)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {dtype}  # the caller's is as it was
    torch.testing.assert_close(answers(loaded), answers(model.float()), rtol=1e-4, atol=1e-5)


def test_mixed_types(tmp_path: Path) -> None:
    model = models()[0]
    model.classifier.double()
    model.backbone.half()
    save_classifier(tmp_path / "m.safetensors", model, PREPROCESSING, CLASSES)
    torch.testing.assert_close(answers(load_classifier(tmp_path / "m.safetensors")[0]), answers(model.float()))


def parametrized(how: str) -> nn.Module:
    from torch.nn.utils import parametrizations, prune, weight_norm

    model = models()[0]
    if how == "prune":
        prune.l1_unstructured(model.classifier, "weight", amount=0.4)
    elif how == "older weight norm":
        with pytest.warns(FutureWarning):
            weight_norm(model.classifier)
        model.classifier.weight_g.data.mul_(1.5)
    elif how == "weight norm":
        parametrizations.weight_norm(model.classifier)
        model.classifier.parametrizations.weight.original0.data.mul_(1.5)
    else:
        parametrizations.spectral_norm(model.backbone.features.conv0)
    return model


@pytest.mark.parametrize("how", ["prune", "older weight norm", "weight norm", "spectral norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parametrized_weights_are_stored_as_what_they_come_to(tmp_path: Path, how: str, dtype: torch.dtype) -> None:
    model = parametrized(how).to(dtype)
    names = list(model.state_dict())
    save_classifier(tmp_path / "m.safetensors", model, PREPROCESSING, CLASSES)
    assert list(model.state_dict()) == names
    loaded, _ = load_classifier(tmp_path / "m.safetensors")
    assert list(loaded.state_dict()) == list(models()[0].state_dict())
    torch.testing.assert_close(answers(loaded), answers(model.float()), rtol=1e-4, atol=1e-4)


def test_another_head(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for model in (AnatomyXNet(5, backbone="tiny", reduction=0.25), DenseNetGAP(5, "tiny")):
        model.classifier = nn.Linear(model.classifier.in_features, 3)
        save_classifier(path, model, PREPROCESSING, CLASSES)
        loaded, info = load_classifier(path)
        assert info.config["num_classes"] == 3
        assert torch.equal(answers(loaded), answers(model))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: setattr(m, "classifier", nn.Linear(m.classifier.in_features, 2)),
            "classes has 3 names, .* 2 logits",
        ),
        (
            lambda m: setattr(m, "classifier", nn.Linear(m.classifier.in_features, 3, bias=False)),
            "no tensor 'clas.*bias'",
        ),
        (lambda m: setattr(m, "classifier", nn.Sequential(m.classifier)), "no tensor 'classifier.weight', which Anat"),
        (lambda m: setattr(m, "auxiliary", nn.Linear(2, 2)), "model has 'auxiliary.weight', which AnatomyXNet has not"),
        (lambda m: setattr(m.backbone.features, "relu0", nn.Tanh()), "model computes something else than AnatomyXNet"),
        (lambda m: setattr(m.backbone.features, "conv0", nn.Conv2d(1, 16, 5, 2, 2)), "has 'backbone.*' of shape"),
        (lambda m: setattr(m.backbone.features, "conv0", nn.Conv2d(2, 16, 7, 2, 3)), "does not take images .* C = 1"),
        (lambda m: m.classifier.weight.data.fill_(float("nan")), "values that are not finite"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path: Path, change, words: str) -> None:
    path = tmp_path / "m.safetensors"
    model = AnatomyXNet(3, backbone="tiny", reduction=0.25)
    save_classifier(path, model, PREPROCESSING, CLASSES)
    before = path.read_bytes()
    change(model)
    with pytest.raises(ValueError, match=words) as caught:
        save_classifier(path, model, PREPROCESSING, CLASSES)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


class Channels(nn.Module):
    channels = (6, 8)

    def __init__(self, count: int, attribute: bool) -> None:
        super().__init__()
        if attribute:
            self.in_channels = count
        self.fine = nn.Conv2d(count, 6, 3, stride=4)
        self.coarse = nn.Conv2d(6, 8, 3, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


class Projected(nn.Module):
    """Its number of channels can only be found by trying."""

    channels = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 3))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.einsum("kc,nchw->nkhw", self.weight, image[..., ::8, ::8])]


@pytest.mark.parametrize(
    ("make", "count"),
    [(lambda: Channels(3, True), 3), (lambda: Channels(4, False), 4), (lambda: Channels(1, False), 1), (Projected, 3)],
)
def test_backbones_of_any_number_of_channels(tmp_path: Path, make, count: int) -> None:
    for number, model in enumerate((AnatomyXNet(3, backbone=make()), DenseNetGAP(3, make()))):
        save_classifier(tmp_path / f"{number}", model, PREPROCESSING, CLASSES)
        loaded, _ = load_classifier(tmp_path / f"{number}", backbone=make())
        assert torch.equal(answers(loaded, count), answers(model, count))


def test_wrapped_models_and_prefixed_names(tmp_path: Path) -> None:
    model = models()[0]
    expected = answers(model)
    compiled = torch.compile(models()[0], backend="eager")
    partly = models()[0]
    partly.backbone = torch.compile(partly.backbone, backend="eager")
    for number, wrapped in enumerate((nn.DataParallel(models()[0]), compiled, partly, nn.DataParallel(compiled))):
        save_classifier(tmp_path / f"{number}", wrapped, PREPROCESSING, CLASSES)
        assert checkpoint.load(tmp_path / f"{number}", "classifier")[0].keys() == model.state_dict().keys()
        assert torch.equal(answers(load_classifier(tmp_path / f"{number}")[0]), expected)
    state, metadata = checkpoint.load(tmp_path / "0", "classifier")
    for prefix in ("module.", "model.", "net.", "_orig_mod.", "module.model._orig_mod.", "_orig_mod.module.net."):
        checkpoint.save(tmp_path / "p", {prefix + name: value for name, value in state.items()}, metadata)
        assert torch.equal(answers(load_classifier(tmp_path / "p")[0]), expected)
    for dot in ("", "."):
        old = {re.sub(r"\.layers\.(norm|conv)([12])\.", rf".\1{dot}\2.", name): value for name, value in state.items()}
        assert list(old) != list(state)
        checkpoint.save(tmp_path / "p", {f"model.{name}": value for name, value in old.items()}, metadata)
        assert torch.equal(answers(load_classifier(tmp_path / "p")[0]), expected)


def test_default_type_and_mixed_precision_around_saving_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = models()[0]
    expected = answers(model)
    with torch.autocast("cpu", torch.bfloat16):
        save_classifier(path, model, PREPROCESSING, CLASSES)
    try:
        torch.set_default_dtype(torch.float64)
        loaded, _ = load_classifier(path)
        save_classifier(path, loaded, PREPROCESSING, CLASSES)
        double = models()[0]
        save_classifier(tmp_path / "d", double, PREPROCESSING, CLASSES)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert torch.equal(answers(loaded), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(answers(load_classifier(path)[0].float()), answers(loaded))
        load_classifier(tmp_path / "d")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("Mass", "Nodule", "Mass"), "classes has 'Mass' twice"),
        (("Mass", " ", "Nodule"), "classes has ' ', expected names"),
        ((1, 2, 3), "classes has 1, expected names"),
    ],
)
def test_classes_are_different_names(tmp_path: Path, classes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save_classifier(tmp_path / "m.safetensors", models()[1], PREPROCESSING, classes)
    assert not list(tmp_path.iterdir())


def test_what_numpy_and_pathlib_say_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    record = {"lr": np.float32(0.5), "films": np.int64(3), "auc": np.array([0.5, 1.0]), "root": Path("a") / "b"}
    save_classifier(path, models()[1], PREPROCESSING, CLASSES, record)
    assert load_classifier(path)[1].training == {"lr": 0.5, "films": 3, "auc": [0.5, 1.0], "root": "a/b"}
    before = path.read_bytes()
    with pytest.raises(TypeError, match="metadata holds a Preprocessing, expected text, numbers"):
        save_classifier(path, models()[1], PREPROCESSING, CLASSES, {"how": PREPROCESSING})
    assert path.read_bytes() == before
