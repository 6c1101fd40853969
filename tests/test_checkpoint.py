from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from axnet import checkpoint

STATE = {"weight": torch.arange(6.0).reshape(2, 3).T, "steps": torch.tensor(3)}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    checkpoint.save(path, STATE, {"kind": "classifier", "classes": ["a", "b"]})
    state, metadata = checkpoint.load(path, "classifier")
    assert all(torch.equal(state[name], value) for name, value in STATE.items())
    assert metadata["classes"] == ["a", "b"]
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, STATE, {"kind": "classifier", "number": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*No space left on device; the file that was there"):
        checkpoint.save(path, STATE, {"kind": "classifier", "number": 2})
    assert checkpoint.load(path, "classifier")[1]["number"] == 1
    assert os.listdir(tmp_path) == ["model.safetensors"]


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_with_code_is_refused_unread(tmp_path, how):
    target = str(tmp_path / "ran")
    path = tmp_path / "evil.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        torch.save({"state": Payload(target)}, path)
    with pytest.raises(ValueError, match="is a pickle, which can run code; expected a .safetensors file"):  # noqa: RUF043
        checkpoint.load(path, "classifier")
    assert not os.path.exists(target)


@pytest.mark.parametrize(
    ("prepare", "error", "words"),
    [
        (lambda p: None, FileNotFoundError, "does not exist"),
        (lambda p: p.write_bytes(b""), ValueError, "is damaged or not a .safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:60]), ValueError, "is damaged or not a .safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4]), ValueError, "is damaged or not a .safetensors file"),
    ],
)
def test_damaged_files(tmp_path, prepare, error, words):
    path = tmp_path / "model.safetensors"
    if error is ValueError:
        checkpoint.save(path, STATE, {"kind": "classifier"})
    prepare(path)
    with pytest.raises(error, match=words):
        checkpoint.load(path, "classifier")


def test_another_kind_and_a_foreign_file(tmp_path):
    from safetensors.torch import save_file

    checkpoint.save(tmp_path / "a", STATE, {"kind": "segmenter"})
    with pytest.raises(ValueError, match="holds a segmenter, expected a classifier"):
        checkpoint.load(tmp_path / "a", "classifier")
    save_file({"x": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(ValueError, match="was not written by axnet"):
        checkpoint.load(tmp_path / "b", "classifier")
    with pytest.raises(ValueError, match="metadata has no 'kind'"):
        checkpoint.save(tmp_path / "c", STATE, {})


def test_fingerprint_tells_other_weights():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    record = checkpoint.fingerprint(model, [(2, 3, 4)], seed=5)
    checkpoint.verify_fingerprint(model, record, "m")
    with torch.no_grad():
        model[1].weight[0, 0] += 1.0
    with pytest.raises(ValueError, match="checkpoint 'm' fails its fingerprint: outputs differ by"):
        checkpoint.verify_fingerprint(model, record, "m")


def test_fingerprint_inputs_do_not_depend_on_torch():
    seen = []
    checkpoint.fingerprint(lambda x: seen.append(x) or x, [(2,)], seed=0)
    assert seen[0].tolist() == pytest.approx([0.8506242, 0.63696164], abs=1e-6)
