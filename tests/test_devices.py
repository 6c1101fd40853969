from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from axnet.cli import app
from axnet.devices import device_of, in_channels_last
from axnet.models import AnatomyXNet


@pytest.mark.parametrize(
    ("name", "gpus", "rank", "expected"),
    [
        ("auto", 0, None, "cpu"),
        ("auto", 1, None, "cuda:0"),
        ("auto", 4, "2", "cuda:2"),
        ("auto", 2, "3", "cuda:1"),
        ("cuda", 4, "1", "cuda:1"),
        ("cpu", 4, "1", "cpu"),
    ],
)
def test_each_process_has_a_gpu_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, rank: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_of(name) == torch.device(expected)


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", "", "cpu:x"])
def test_a_device_that_does_not_serve_is_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^device is '{name}', which does not serve here \([^\n]+\)\.$"):
        device_of(name)


@pytest.mark.parametrize("command", ["predict", "evaluate", "serve"])
def test_commands_compute_where_they_are_told(command: str, tmp_path: Path) -> None:
    """Which is said before anything is written."""
    if command == "serve":
        pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    film = tmp_path / "film.png"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(film)
    arguments = {"predict": [str(film), "--out", str(tmp_path / "out.csv")], "evaluate": ["--out", str(tmp_path / "o")]}
    result = CliRunner().invoke(app, [command, *arguments.get(command, []), "--device", "abacus"])
    assert result.exit_code != 0
    assert str(result.exception).startswith("device is 'abacus', which does not serve here (")
    assert not list(tmp_path.glob("out*"))


def test_channels_last_is_the_same_network() -> None:
    model = AnatomyXNet(3, backbone="tiny", reduction=0.25).eval()
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    with torch.no_grad():
        before = model(image, mask).logits
        assert in_channels_last(model) is model
        assert model(image, mask).logits == pytest.approx(before, abs=1e-5)
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)
