from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from axnet.models import densenet121, load_torchvision_densenet, tiny


def torchvision_state(*, old_names: bool = False) -> dict[str, Tensor]:
    """A state dict with the names and shapes of torchvision's densenet121, weights of a seeded model."""
    torch.manual_seed(3)
    state = densenet121(in_channels=3, stages=(1, 2, 3, 4)).state_dict()
    dot = "." if old_names else ""
    named = {re.sub(r"\.layers\.(norm|relu|conv)([12])", rf".\1{dot}\2", name): value for name, value in state.items()}
    named |= {"classifier.weight": torch.rand(1000, 1024), "classifier.bias": torch.rand(1000)}
    return {name: value for name, value in named.items() if not (old_names and name.endswith("num_batches_tracked"))}


@pytest.fixture(scope="module")
def modern() -> dict[str, Tensor]:
    return torchvision_state()


def test_names_are_torchvisions(modern: dict[str, Tensor]) -> None:
    assert modern["features.denseblock3.denselayer24.conv2.weight"].shape == (32, 128, 3, 3)
    assert modern["features.denseblock1.denselayer1.norm1.running_mean"].shape == (64,)
    assert "features.denseblock1.denselayer1.norm.1.weight" in torchvision_state(old_names=True)


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_every_tensor_arrives(tmp_path: Path, old_names: bool, suffix: str) -> None:
    state = torchvision_state(old_names=old_names)
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    expected = densenet121(in_channels=3)
    torch.manual_seed(3)
    expected = densenet121(in_channels=3, stages=(1, 2, 3, 4))
    loaded = densenet121(path, in_channels=3)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "net.", "module.densenet121.", "model.backbone._orig_mod.", "a.b.c."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict"])
def test_prefixed_names(tmp_path: Path, prefix: str, container: str | None) -> None:
    source = tiny(in_channels=3)
    for old in (False, True):
        dot = "." if old else ""
        state = {
            prefix + re.sub(r"\.layers\.(norm|conv)([12])\.", rf".\1{dot}\2.", name): value
            for name, value in source.state_dict().items()
            if not (old and name.endswith("num_batches_tracked"))
        }
        state[f"{prefix}classifier.0.weight"] = torch.rand(14, 8)
        if prefix != "_orig_mod.":
            state["criterion.pos_weight"] = torch.ones(14)  # of the module around it, beside the network
        torch.save(
            state if container is None else {container: state, "epoch": 3, "optimizer": {}}, tmp_path / "c.pth.tar"
        )
        load_torchvision_densenet(backbone := tiny(in_channels=3), tmp_path / "c.pth.tar")
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, source.state_dict()[name]), name


def test_prefixed_names_that_do_not_fit(tmp_path: Path) -> None:
    state = tiny().state_dict()
    torch.save(
        {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()}, tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"w': .* stand under 'student\.' and under 'teacher\.', expected one set"):
        load_torchvision_densenet(tiny(), tmp_path / "w")
    torch.save(
        {f"module.{name}": value for name, value in state.items() if name != "features.norm0.bias"}, tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"1 missing: features\.norm0\.bias\.$"):
        load_torchvision_densenet(tiny(), tmp_path / "w")
    torch.save(
        {f"module.{name}": value for name, value in state.items()} | {"module.stem": torch.rand(1)}, tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"1 left over: stem"):
        load_torchvision_densenet(tiny(), tmp_path / "w")


def test_grey_backbone_answers_as_the_repeated_image(tmp_path: Path, modern: dict[str, Tensor]) -> None:
    torch.save(modern, tmp_path / "weights.pth")
    grey = densenet121(tmp_path / "weights.pth").eval()
    colour = densenet121(tmp_path / "weights.pth", in_channels=3).eval()
    image = torch.rand(1, 1, 64, 64)
    for ours, theirs in zip(grey(image), colour(image.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_shorter_backbone_leaves_later_blocks(tmp_path: Path, modern: dict[str, Tensor]) -> None:
    torch.save(modern, tmp_path / "weights.pth")
    backbone = densenet121(tmp_path / "weights.pth", in_channels=3, stages=(2,))
    name = "features.denseblock2.denselayer12.layers.conv2.weight"
    assert torch.equal(backbone.state_dict()[name], modern["features.denseblock2.denselayer12.conv2.weight"])


def test_mismatch_is_listed_and_nothing_is_loaded(tmp_path: Path, modern: dict[str, Tensor]) -> None:
    state = dict(modern)
    del state["features.norm5.weight"]
    state["features.conv0.weight"] = torch.rand(64, 3, 5, 5)
    state["features.stem.weight"] = torch.rand(1)
    torch.save(state, tmp_path / "weights.pth")
    backbone = densenet121()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match="do not match a torchvision densenet121") as caught:
        load_torchvision_densenet(backbone, tmp_path / "weights.pth")
    message = str(caught.value)
    assert "1 missing: features.norm5.weight" in message
    assert "1 of another shape: features.conv0.weight (64, 1, 5, 5) for (64, 1, 7, 7)" in message
    assert "1 left over: features.stem.weight" in message
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bomb",)


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth' does not exist"):
        densenet121("none.pth")
    torch.save({"features.conv0.weight": Bomb()}, "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth' is damaged or holds more than tensors"):
        densenet121("bomb.pth")
    assert not Path("bomb").exists()
    Path("cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"cut\.safetensors' is damaged"):
        densenet121("cut.safetensors")
    torch.save([1, 2], "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth' holds list, expected a state dict"):
        densenet121("list.pth")
