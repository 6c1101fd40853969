"""axnet.accelerate and axnet's layers on networks of the packages that users come with (docs/dropin.md, "Adapters")."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import axnet
from axnet.models import AnatomyXNet
from axnet.nn import PWAP, PCAMHead


def needed(package):
    """The package, or a skip with the reason."""
    return pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)


def unchanged(model: nn.Module, example: Tensor) -> axnet.dropin.Report:
    """Accelerate and restore a model: outputs agree on the way, and are the same bits afterwards."""
    model.eval()
    with torch.no_grad():
        before = outputs(model(example))
        state = copy.deepcopy(model.state_dict())
        fast = axnet.accelerate(model, example=example, time=False, quiet=True)
        for a, b in zip(before, outputs(fast(example)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert list(fast.state_dict()) == list(state)
        report = fast.axnet_report
        for a, b in zip(before, outputs(axnet.restore(fast)(example)), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(v, state[k]) for k, v in fast.state_dict().items())
    return report


def outputs(result):
    return torch.utils._pytree.tree_leaves(dict(result) if hasattr(result, "keys") else result)


def averages_alone(report) -> bool:
    return not report.replaced and any(row.what == "global average" for row in report.kept)


@pytest.mark.parametrize("name", ["DenseNet121", "resnet18"])
def test_monai(name):
    nets = needed("monai.networks.nets")
    torch.manual_seed(0)
    options = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 5} if name == "resnet18" else None
    model = nets.resnet18(**options) if options else nets.DenseNet121(2, 1, 14)
    assert averages_alone(unchanged(model, torch.randn(2, 1, 64, 64)))


def test_monai_squeeze_and_excitation_unet():
    blocks = needed("monai.networks.blocks")
    torch.manual_seed(0)
    assert averages_alone(unchanged(blocks.ChannelSELayer(2, 16), torch.randn(2, 16, 9, 7)))


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_torchvision(name):
    models = needed("torchvision.models")
    torch.manual_seed(0)
    assert averages_alone(unchanged(getattr(models, name)(), torch.randn(2, 3, 64, 64)))


def test_torchvision_with_a_pcam_head():
    models = needed("torchvision.models")
    torch.manual_seed(0)
    model = nn.Sequential(models.densenet121().features, nn.ReLU(), PCAMHead(1024, 14))
    logits, prob = model(torch.randn(2, 3, 64, 64))
    assert (logits.shape, prob.shape) == ((2, 14), (2, 14, 2, 2))
    logits.sum().backward()


@pytest.mark.parametrize(
    ("pool", "what"), [("avg", None), ("catavgmax", "average and maximum"), ("max", "global maximum")]
)
def test_timm_pools(pool, what):
    timm = needed("timm")
    torch.manual_seed(0)
    report = unchanged(timm.create_model("resnet18", global_pool=pool), torch.randn(2, 3, 64, 64))
    if what is None:
        assert averages_alone(report)
    else:
        assert [row.what for row in report.replaced] == [what]


def test_timm_attention():
    timm = needed("timm")
    torch.manual_seed(0)
    from timm.layers.cbam import CbamModule

    report = unchanged(CbamModule(16), torch.randn(2, 16, 9, 7))
    assert [row.what for row in report.replaced] == ["average and maximum"], timm.__version__


def test_timm_features_and_global_pool():
    timm = needed("timm")
    torch.manual_seed(0)
    features = timm.create_model("resnet18", features_only=True, out_indices=(3, 4))
    unchanged(features, torch.randn(2, 3, 64, 64))
    pooled, _ = PWAP(512, 3)(features(torch.randn(2, 3, 64, 64))[-1])
    assert pooled.shape == (2, 3, 512)

    class Pooled(nn.Module):
        """PWAP's vector in the place of a classifier's average."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.pwap = PWAP(channels)

        def forward(self, x: Tensor) -> Tensor:
            return self.pwap(x)[0].flatten(1)

    model = timm.create_model("resnet18", num_classes=14)
    model.global_pool = Pooled(model.num_features)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 14)
    logits.sum().backward()
    assert model.global_pool.pwap.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("package", ["timm:resnet18", "torchvision:resnet18"])
def test_anatomy_xnet_on_their_backbones(package):
    needed(package.partition(":")[0])
    torch.manual_seed(0)
    model = AnatomyXNet(3, backbone=package).eval()
    out = model(torch.randn(2, 1, 64, 64), torch.rand(2, 2, 64, 64))
    assert out.logits.shape == (2, 3)


def test_torchxrayvision():
    models = needed("torchxrayvision.models")
    torch.manual_seed(0)
    model = models.DenseNet(
        num_classes=18, in_channels=1, op_threshs=None
    )  # as weights="densenet121-res224-all" makes it
    weights = [p.data_ptr() for p in model.parameters()]
    report = unchanged(model, torch.randn(1, 1, 224, 224))
    assert averages_alone(report)
    axnet.restore(axnet.accelerate(model, example=torch.randn(1, 1, 224, 224), time=False, inplace=True, quiet=True))
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert model(torch.randn(1, 1, 224, 224)).shape == (1, 18)
    maps = model.features2 if hasattr(model, "features2") else model.features
    assert maps(torch.randn(1, 1, 224, 224)).shape[:2] == (1, 1024)  # what a head of one's own takes


def test_hugging_face():
    transformers = needed("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    config.num_labels = 14
    model = transformers.ResNetForImageClassification(config)
    report = unchanged(model, torch.randn(2, 1, 64, 64))
    assert not report.replaced
