from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from axnet.models import AnatomyXNet, DenseNetGAP


class TwoMaps(nn.Module):
    """A backbone of the caller's."""

    channels = (5, 7)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 5, 3, stride=2)
        self.coarse = nn.Conv2d(5, 7, 3, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 1, 64, 64), torch.rand(3, 2, 64, 64)


@pytest.mark.parametrize("fusion", ["mean", "concat"])
@pytest.mark.parametrize("num_maps", [1, "classes"])
def test_shapes_and_gradients(batch: tuple[Tensor, Tensor], fusion: str, num_maps: int | str) -> None:
    model = AnatomyXNet(4, 2, "tiny", fusion=fusion, num_maps=num_maps, reduction=0.25)
    out = model(*batch)
    maps, width = (4 if num_maps == "classes" else 1), 228 * (2 if fusion == "concat" else 1)
    assert out.logits.shape == (3, 4)
    assert [tuple(prob.shape) for prob in out.prob_maps] == [(3, maps, 8, 8), (3, maps, 4, 4)]
    assert out.pooled.shape == (3, maps, width)
    assert all(((prob > 0) & (prob < 1)).all() for prob in out.prob_maps)
    out.logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_finding_reads_its_own_map(batch: tuple[Tensor, Tensor]) -> None:
    model = AnatomyXNet(4, 2, "tiny", num_maps="classes", reduction=0.25).eval()
    before = model(*batch).logits
    with torch.no_grad():
        for pooling in model.pooling:
            pooling.weight[2] += 1
    changed = (model(*batch).logits - before).abs().amax(0) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_one_map_equals_equal_maps_per_class(batch: tuple[Tensor, Tensor]) -> None:
    one = AnatomyXNet(4, 2, "tiny", reduction=0.25).eval()
    per_class = AnatomyXNet(4, 2, "tiny", num_maps="classes", reduction=0.25).eval()
    state = one.state_dict()
    for stage in range(2):
        for name in ("weight", "bias"):
            key = f"pooling.{stage}.{name}"
            state[key] = state[key].expand_as(per_class.state_dict()[key])
    per_class.load_state_dict(state)
    torch.testing.assert_close(per_class(*batch).logits, one(*batch).logits)


def test_the_mask_decides(batch: tuple[Tensor, Tensor]) -> None:
    image, mask = batch
    model = AnatomyXNet(4, 2, "tiny", reduction=0.25).eval()
    assert not torch.allclose(model(image, mask).logits, model(image, torch.zeros_like(mask)).logits)
    small = (mask * 255).round().to(torch.uint8)
    torch.testing.assert_close(model(image, small).logits, model(image, small / 255).logits)
    baseline = DenseNetGAP(4, "tiny").eval()
    assert torch.equal(baseline(image, mask).logits, baseline(image).logits)
    assert baseline(image, mask).prob_maps == ()


def test_own_backbone(batch: tuple[Tensor, Tensor]) -> None:
    model = AnatomyXNet(4, 2, TwoMaps())
    assert model(*batch).pooled.shape == (3, 1, 12)
    assert model.config["backbone"] == "custom"
    assert DenseNetGAP(4, TwoMaps())(*batch).pooled.shape == (3, 1, 7)


def test_default_is_densenet121() -> None:
    model = AnatomyXNet(reduction=1 / 16)
    assert model.backbone.channels == (1024, 1024)
    assert model.config["stages"] == [3, 4]
    assert model.classifier.weight.shape == (14, 2048)


def test_errors(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="num_classes is 0, expected 1 or more"):
        AnatomyXNet(0, backbone="tiny")
    with pytest.raises(ValueError, match="num_maps is 3, expected 1 or 'classes'"):
        AnatomyXNet(4, 2, "tiny", num_maps=3)
    with pytest.raises(ValueError, match=r"backbone is ReLU, expected a name or an nn\.Module with \.channels"):
        DenseNetGAP(4, nn.ReLU())
    image, mask = batch
    with pytest.raises(ValueError, match="mask has 3 anatomies"):
        AnatomyXNet(4, 2, "tiny")(image, torch.cat((mask, mask[:, :1]), 1))
