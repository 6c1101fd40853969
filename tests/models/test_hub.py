from __future__ import annotations

import json
import sys

import pytest
import torch

from axnet import models
from axnet.models import Calibration, Preprocessing, save_classifier

FINDINGS = ("Effusion", "Nodule", "Mass")
CALIBRATION = Calibration(1.7, (0.3, None, 0.5), (0.8, None, 0.7), (0.9, None, 0.6), (120.0, None, 50.0), "Youden", "9")


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install 'axnet[hub]')")
    from axnet import hub

    return hub


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "run" / "model.safetensors"
    model = models.AnatomyXNet(3, backbone="tiny").eval()
    save_classifier(path, model, Preprocessing(size=32), FINDINGS, {"epochs": 3}, CALIBRATION)
    return path


def logits(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.rand(2, 1, 32, 32), torch.rand(2, 2, 32, 32)).logits


def test_a_folder_holds_everything_and_loads_the_same(hub, weights, tmp_path):
    from axnet.segment import PRESETS, Segmenter

    Segmenter(PRESETS["tiny"]).save(weights.parent / "segmenter.safetensors")
    sent = hub.HubClassifier.load(weights)
    folder = tmp_path / "repository"
    sent.save_pretrained(folder, model_card_kwargs={"license": "mit"})
    assert {p.name for p in folder.iterdir()} == {hub.WEIGHTS, hub.SEGMENTER, "config.json", "README.md"}
    assert json.loads((folder / "config.json").read_text())["findings"] == list(FINDINGS)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(entry in card for entry in ("library_name: axnet", "license: mit", "- chest-x-ray", "Effusion, Nodule"))

    back = hub.HubClassifier.from_pretrained(folder)
    assert torch.equal(logits(back), logits(sent))
    assert back.info == sent.info
    assert not back.training
    assert back.segmenter.config == PRESETS["tiny"]
    assert back.predictor().findings == FINDINGS
    loaded, info = models.load_classifier(folder / hub.WEIGHTS)  # a checkpoint of axnet like any other
    assert torch.equal(logits(loaded), logits(sent))
    assert info.calibration == CALIBRATION


def test_the_card_beside_the_weights_is_the_repositorys(hub, weights, tmp_path):
    weights.with_suffix(".md").write_text("# What it misses\n", encoding="utf-8")
    hub.HubClassifier.load(weights).save_pretrained(tmp_path / "one")
    back = hub.HubClassifier.from_pretrained(tmp_path / "one")
    back.save_pretrained(tmp_path / "two")
    for folder in ("one", "two"):
        text = (tmp_path / folder / "README.md").read_text()
        assert text.count("# What it misses") == text.count("library_name: axnet") == 1
    assert back.segmenter is None


def test_pushing_uploads_the_same_files(hub, weights, tmp_path, monkeypatch):
    """Against a stand-in for the Hub's API: what would be sent, from a repository that is made private."""
    from huggingface_hub import HfApi

    sent = {}

    class Repository:
        repo_id = "me/chest"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **given: sent.update(given) or Repository())

    def upload(self, *, folder_path, **given):
        sent["files"] = {p.name for p in folder_path.iterdir()}
        return "done"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert hub.HubClassifier.load(weights).push_to_hub("me/chest", private=True) == "done"
    assert sent["private"] is True
    assert sent["files"] == {hub.WEIGHTS, "config.json", "README.md"}


def test_a_repository_is_downloaded_file_by_file(hub, weights, tmp_path, monkeypatch):
    """A repository without a segmenter, and the arguments of the download."""
    from huggingface_hub import hub_mixin

    folder = tmp_path / "repository"
    hub.HubClassifier.load(weights).save_pretrained(folder)
    asked = {}

    def download(repo_id, filename, **given):
        asked[filename] = repo_id, given["revision"]
        if not (folder / filename).is_file():
            raise hub.EntryNotFoundError("404")
        return str(folder / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    back = hub.HubClassifier.from_pretrained("me/chest", revision="v2")
    assert asked[hub.WEIGHTS] == asked[hub.SEGMENTER] == ("me/chest", "v2")
    assert back.segmenter is None
    assert back.info.classes == FINDINGS


@pytest.mark.parametrize("known", [True, False])
def test_a_hub_that_is_not_reached_is_not_a_missing_segmenter(hub, weights, tmp_path, monkeypatch, known):
    """Without the Hub the segmenter may be left out only where the Hub said before that there is none."""
    from huggingface_hub import hub_mixin

    folder, cache = tmp_path / "repository", tmp_path / "cache"
    hub.HubClassifier.load(weights).save_pretrained(folder)
    commit = "0" * 40
    if known:
        note = cache / "models--me--chest" / ".no_exist" / commit / hub.SEGMENTER
        note.parent.mkdir(parents=True)
        note.touch()
    reach = hub.hf_hub_download

    def download(repo_id, filename, **given):
        return str(folder / filename) if (folder / filename).is_file() else reach(repo_id, filename, **given)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    asked = {"revision": commit, "cache_dir": str(cache), "local_files_only": True}
    if known:
        assert hub.HubClassifier.from_pretrained("me/chest", **asked).segmenter is None
    else:
        with pytest.raises(hub.LocalEntryNotFoundError):
            hub.HubClassifier.from_pretrained("me/chest", **asked)


def test_a_damaged_or_empty_folder_is_refused(hub, weights, tmp_path):
    folder = tmp_path / "repository"
    hub.HubClassifier.load(weights).save_pretrained(folder)
    file = folder / hub.WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged or not a .safetensors file"):
        hub.HubClassifier.from_pretrained(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors' does not exist"):
        hub.HubClassifier.from_pretrained(tmp_path / "empty")


def test_a_missing_huggingface_hub_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "axnet.hub", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"through huggingface_hub: pip install 'axnet\[hub\]'"):
        import axnet.hub  # noqa: F401
