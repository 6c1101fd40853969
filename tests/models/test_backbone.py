from __future__ import annotations

import pytest
import torch

from axnet.models import Backbone, build_backbone, densenet121, tiny


def test_densenet121_default_stages() -> None:
    backbone = densenet121().eval()
    assert isinstance(backbone, Backbone)
    assert backbone.channels == (1024, 1024)
    maps = backbone(torch.rand(2, 1, 64, 64))
    assert [tuple(x.shape) for x in maps] == [(2, 1024, 4, 4), (2, 1024, 2, 2)]
    assert maps[1].min() >= 0  # after norm5 and ReLU, as the classifier of DenseNet sees it
    assert maps[0].min() < 0  # an inner block's own output


@pytest.mark.parametrize(
    ("stages", "channels"), [((1,), (256,)), ((2, 3), (512, 1024)), ((1, 2, 3, 4), (256, 512, 1024, 1024))]
)
def test_stages(stages: tuple[int, ...], channels: tuple[int, ...]) -> None:
    backbone = densenet121(stages=stages).eval()
    maps = backbone(torch.rand(1, 1, 64, 64))
    assert backbone.channels == channels == tuple(x.shape[1] for x in maps)
    assert [x.shape[-1] for x in maps] == [64 // 2 ** (stage + 1) for stage in stages]


def test_maps_do_not_depend_on_the_stages_asked_for() -> None:
    torch.manual_seed(0)
    full = tiny(stages=(1, 2, 3)).eval()
    part = tiny(stages=(2,)).eval()
    part.load_state_dict({name: full.state_dict()[name] for name in part.state_dict()})
    image = torch.rand(1, 1, 64, 64)
    assert torch.equal(part(image)[0], full(image)[1])


def test_no_parameter_is_idle() -> None:
    for stages in ((1,), (1, 2), (3,)):
        backbone = tiny(stages=stages)
        sum(x.sum() for x in backbone(torch.rand(2, 1, 64, 64))).backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_grey_image_in_three_channels() -> None:
    backbone = tiny(in_channels=3).eval()
    image = torch.rand(1, 1, 64, 64)
    assert torch.equal(backbone(image)[0], backbone(image.repeat(1, 3, 1, 1))[0])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"stages is \(3, 2\), expected ascending dense blocks out of 1 to 4"):
        densenet121(stages=(3, 2))
    with pytest.raises(ValueError, match=r"stages is \(4,\), expected ascending dense blocks out of 1 to 3"):
        tiny(stages=(4,))
    with pytest.raises(ValueError, match="in_channels is 2, expected 1 or 3"):
        tiny(in_channels=2)
    with pytest.raises(ValueError, match="backbone is 'resnet', expected one of"):
        build_backbone("resnet")
