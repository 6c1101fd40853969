from __future__ import annotations

import pytest
import torch
from torch import nn

from axnet import models
from axnet.export import fold


def drawn(model: nn.Module) -> nn.Module:
    """The model in eval mode, its normalisations far from the identity."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.3, 3)
            nn.init.uniform_(layer.weight, -2, 2)
            nn.init.normal_(layer.bias)
    return model.eval()


class Odd(nn.Module):
    """Normalisations with a convolution before them, of which only the first three can be folded."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4, padding="same"), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6))
        self.read_twice, self.norm_read_twice = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.shared, self.first, self.second = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.hooked, self.norm_hooked = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.hooked.register_forward_hook(lambda module, given, out: out * 2)
        self.weighted = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))
        self.norm_weighted = nn.BatchNorm2d(6)
        self.no_statistics = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False))
        self.uncalled = nn.BatchNorm2d(3)
        self.alias = self.plain

    def forward(self, x):
        x = self.up(self.grouped(self.alias(x)))
        y = self.read_twice(x)
        x = self.norm_read_twice(y) + y.relu()
        x = self.first(self.shared(x)) + self.second(self.shared(x.relu()))
        x = self.norm_hooked(self.hooked(x))
        return self.no_statistics(self.norm_weighted(self.weighted(x)))


def test_folds_what_can_be_folded_and_says_why_the_rest_cannot():
    model, x = drawn(Odd()).double(), torch.randn(2, 2, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        folded = fold(model, (x,))
        assert torch.equal(model(x), before)  # as it was
        torch.testing.assert_close(folded.model(x), before, rtol=1e-10, atol=1e-10)
    assert folded.folded == {"plain.1": "plain.0", "grouped.1": "grouped.0", "up.1": "up.0"}
    used = "its convolution is used for something else too"
    assert folded.kept["norm_read_twice"] == folded.kept["first"] == folded.kept["second"] == used
    assert folded.kept["norm_hooked"] == "its input is no convolution's output but that of mul"
    assert folded.kept["norm_weighted"] == "its weights or its convolution's are computed"
    assert folded.kept["no_statistics.1"] == "it has no running statistics"
    assert folded.kept["uncalled"] == "part of a fused layer, or not called"
    assert str(folded).startswith("3 of 10 batch normalisations folded into the convolution before them\n")


def test_weights_that_another_layer_shares_stay_as_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other, self.last = (
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
            )
            self.other.weight, self.last.bias = self.conv.weight, self.norm.bias

        def forward(self, x):
            return self.last(self.other(self.norm(self.conv(x))).relu())

    model, x = drawn(Tied()), torch.randn(2, 4, 5, 5)
    folded = fold(model, (x,))
    assert folded.folded == {"norm": "conv"}
    with torch.no_grad():
        torch.testing.assert_close(folded.model(x), model(x))


def test_a_normalisation_that_also_activates_stays():
    class WithReLU(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    model, x = drawn(nn.Sequential(nn.Conv2d(1, 4, 3), WithReLU(4))), torch.randn(2, 1, 8, 8)
    folded = fold(model, (x,))
    assert folded.kept == {"1": "WithReLU may do more than normalise"}
    with torch.no_grad():
        assert torch.equal(folded.model(x), model(x))


class Pooled(nn.Module):
    """Average pools behind a convolution, of which only the first three may run before it."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(2))
        self.odd = nn.Sequential(nn.Conv2d(6, 4, 1, groups=2), nn.AvgPool2d(3, 2, ceil_mode=True))
        self.same = nn.Sequential(nn.Conv2d(6, 4, 1, padding="same", bias=False), nn.AvgPool2d((2, 1), (2, 1)))
        self.wide = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.AvgPool2d(2))
        self.strided = nn.Sequential(nn.Conv2d(6, 4, 1, stride=2), nn.AvgPool2d(2))
        self.padded = nn.Sequential(nn.Conv2d(6, 4, 1, padding=1), nn.AvgPool2d(2))
        self.zeros = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(3, 2, padding=1))
        self.divided = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(2, divisor_override=3))
        self.no_fewer = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(2, 1))
        self.hooked = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(2))
        self.hooked[0].register_forward_hook(lambda module, given, out: out.relu())
        self.up = nn.Sequential(nn.ConvTranspose2d(6, 4, 1), nn.AvgPool2d(2))
        self.maximum = nn.Sequential(nn.Conv2d(6, 4, 1), nn.MaxPool2d(2))
        self.read_twice, self.pool = nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)

    def forward(self, x):
        y = self.read_twice(x)
        return [y, self.pool(y), *(part(x) for part in self.children() if isinstance(part, nn.Sequential))]


def test_an_average_runs_before_a_convolution_of_one_pixel():
    torch.manual_seed(0)
    model, x = Pooled().double().train(), torch.randn(2, 6, 13, 10, dtype=torch.float64)
    folded = fold(model, (x,))
    assert folded.earlier == {"plain.1": "plain.0", "odd.1": "odd.0", "same.1": "same.0"}
    assert "3 average pools before the 1x1 convolution that they followed (plain.1, ...)" in str(folded)
    assert not any(module.training for module in folded.model.modules())
    pixels = []
    folded.model.plain[0][1].register_forward_hook(lambda module, given, out: pixels.append(out.shape[2:]))
    with torch.no_grad():
        for found, wanted in zip(folded.model(x), model.eval()(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert pixels == [(6, 5)]


@pytest.mark.parametrize("dimensions", [1, 3])
def test_an_average_of_other_dimensions(dimensions):
    kinds = {1: (nn.Conv1d, nn.AvgPool1d), 3: (nn.Conv3d, nn.AvgPool3d)}[dimensions]
    model = nn.Sequential(kinds[0](2, 4, 1), kinds[1](2)).eval()
    x = torch.randn(2, 2, *[6] * dimensions)
    folded = fold(model, (x,))
    assert folded.earlier == {"1": "0"}
    with torch.no_grad():
        torch.testing.assert_close(folded.model(x), model(x))


@pytest.mark.parametrize("backbone", ["tiny", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_a_densenet_folds_behind_convolutions(backbone):
    model = drawn(models.AnatomyXNet(3, backbone=backbone))
    folded = fold(model)
    names = [name.rpartition(".")[2] for name in folded.folded]
    layers = sum(name == "norm2" for name in names)
    assert set(names) == {"norm0", "norm2"}
    assert layers == {"tiny": 12, "densenet121": 58}[backbone]
    assert folded.kept["attention.1.norm"] == "part of a fused layer, or not called"
    assert [name.rpartition(".")[2] for name in folded.earlier] == ["pool"] * {"tiny": 2, "densenet121": 3}[backbone]
    given = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded.model(*given).logits, model(*given).logits, rtol=1e-5, atol=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="example is missing, expected what Linear is called with"):
        fold(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="example is a Tensor, expected a tuple of the tensors"):
        fold(nn.BatchNorm1d(2), torch.rand(2, 2))
    with pytest.raises(ValueError, match="model cannot be traced with this example, so it cannot be folded: "):
        fold(nn.BatchNorm2d(2), (torch.rand(2, 2),))
