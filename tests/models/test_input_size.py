"""input_size: a classifier of small films that looks at them larger."""

import pytest
import torch
from torch.nn import functional as F

from axnet.models import AnatomyXNet, DenseNetGAP, Preprocessing, load_classifier, save_classifier


@pytest.mark.parametrize("kind", [AnatomyXNet, DenseNetGAP])
def test_images_are_resized_before_the_backbone(kind, tmp_path):
    torch.manual_seed(0)
    larger = kind(3, backbone="tiny", input_size=96).eval()
    plain = kind(3, backbone="tiny").eval()
    plain.load_state_dict(larger.state_dict())
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    resized = F.interpolate(image, (96, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found, wanted = larger(image, mask), plain(resized, mask)
    torch.testing.assert_close(found.logits, wanted.logits)
    assert [m.shape for m in found.prob_maps] == [m.shape for m in wanted.prob_maps]
    save_classifier(tmp_path / "a.safetensors", larger, Preprocessing(size=64), ("a", "b", "c"))
    again, info = load_classifier(tmp_path / "a.safetensors")
    assert info.config["input_size"] == 96
    with torch.no_grad():
        torch.testing.assert_close(again(image, mask).logits, found.logits)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "96"])
def test_no_size(size):
    with pytest.raises(ValueError, match=r"input_size is .*expected positive pixels or None"):
        DenseNetGAP(3, backbone="tiny", input_size=size)
