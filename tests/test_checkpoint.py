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


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "m.safetensors", STATE, {"kind": "classifier"})
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("there", (True, False))
@pytest.mark.parametrize("step", ("fsync", "replace"))
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step, there):
    path = tmp_path / "model.safetensors"
    if there:
        checkpoint.save(path, STATE, {"kind": "classifier", "number": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, step, full)
    with pytest.raises(OSError, match=r"^cannot write checkpoint .*No space left on device") as caught:
        checkpoint.save(path, STATE, {"kind": "classifier", "number": 2})
    assert caught.value.errno == errno.ENOSPC
    assert ("the file that was there before is whole" in str(caught.value)) is there
    assert os.listdir(tmp_path) == ["model.safetensors"] * there
    if there:
        assert checkpoint.load(path, "classifier")[1]["number"] == 1


def test_a_write_that_stops_halfway_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, STATE, {"kind": "classifier", "number": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # the kernel itself refuses to let the file grow further; Python ignores the signal that comes with it
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(OSError, match=r"^cannot write checkpoint"):
            checkpoint.save(path, {"weight": torch.zeros(100_000)}, {"kind": "classifier", "number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path, "classifier")[1]["number"] == 1
    assert os.listdir(tmp_path) == ["model.safetensors"]


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("how", ("protocol 0", "protocol 2", "protocol 5", "torch", "torch before 1.6"))
def test_a_pickle_with_code_is_refused_unread(tmp_path, how):
    target = str(tmp_path / "ran")
    path = tmp_path / "evil.safetensors"
    if how.startswith("torch"):
        torch.save({"state": Payload(target)}, path, _use_new_zipfile_serialization=how == "torch")
    else:
        path.write_bytes(pickle.dumps(Payload(target), protocol=int(how[-1])))
    words = "damaged or not a .safetensors file" if how == "protocol 0" else "is a pickle, which can run code; expected"
    with pytest.raises(ValueError, match=words):
        checkpoint.load(path, "classifier")
    assert not os.path.exists(target)


@pytest.mark.parametrize("length", [640, 768, 896, 1024, 1152, 1280, 1408, 640 + 65536, 1408 + 65536])
def test_headers_as_long_as_a_pickle_begins(tmp_path, length):
    path = tmp_path / "m.safetensors"
    written = 0
    padding = ""
    for _ in range(3):  # the header is padded with spaces to a multiple of 8
        checkpoint.save(path, STATE, {"kind": "classifier", "padding": padding})
        written = int.from_bytes(path.read_bytes()[:8], "little")
        padding = "x" * max(0, len(padding) + length - written)
    assert written == length
    state, metadata = checkpoint.load(path, "classifier")
    assert torch.equal(state["weight"], STATE["weight"])
    assert metadata["kind"] == "classifier"


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
    for strange in ("[1]", "{}", '{"format": "new", "kind": "classifier"}'):
        save_file({"x": torch.zeros(1)}, tmp_path / "b", metadata={"axnet": strange})
        with pytest.raises(ValueError, match="was not written by axnet"):
            checkpoint.load(tmp_path / "b", "classifier")
    save_file({"x": torch.zeros(1)}, tmp_path / "b", metadata={"axnet": '{"format": 99, "kind": "classifier"}'})
    with pytest.raises(ValueError, match="has format 99, this version reads format"):
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


def test_fingerprint_sees_every_part_of_a_map():
    base = torch.zeros(1, 3, 64, 64)
    record = checkpoint.fingerprint(lambda _: base, [(1,)])
    for rows, columns in ((slice(30, 34), slice(None)), (slice(None), slice(30, 34)), (slice(40, 41), slice(40, 41))):
        changed = base.clone()
        changed[:, 1, rows, columns] = 1.0
        with pytest.raises(ValueError, match="outputs differ by"):
            checkpoint.verify_fingerprint(lambda _, changed=changed: changed, record, "m")


def test_fingerprint_accepts_rounding_and_no_more():
    record = checkpoint.fingerprint(lambda x: 10 * x, [(2, 50)])
    checkpoint.verify_fingerprint(lambda x: 10 * x + 1e-3, record, "m")
    with pytest.raises(ValueError, match=r"outputs differ by 0.02"):
        checkpoint.verify_fingerprint(lambda x: 10 * x + 2e-2, record, "m")
    with pytest.raises(ValueError, match=r"outputs differ by 0.001"):
        checkpoint.verify_fingerprint(lambda x: 10 * x + 1e-3, record, "m", rtol=1e-5)
    with pytest.raises(ValueError, match=r"outputs of shape \[2, 49\], expected \[2, 50\]"):
        checkpoint.verify_fingerprint(lambda x: 10 * x[:, 1:], record, "m")
    with pytest.raises(ValueError, match="outputs differ by nan"):
        checkpoint.verify_fingerprint(lambda x: x * float("nan"), record, "m")


def test_a_diverged_model_has_no_fingerprint():
    with pytest.raises(ValueError, match="answers with values that are not finite"):
        checkpoint.fingerprint(lambda x: x / 0, [(2,)])
    with pytest.raises(ValueError, match=r"answers with shape \[0\], expected at least one value"):
        checkpoint.fingerprint(lambda x: x[:0], [(2,)])


def test_fingerprint_inputs_do_not_depend_on_torch():
    seen = []
    checkpoint.fingerprint(lambda x: seen.append(x) or x, [(2,)], seed=0)
    assert seen[0].tolist() == pytest.approx([0.8506242, 0.63696164], abs=1e-6)
