from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from axnet import models
from axnet.cli import export as command
from axnet.export import FORMATS, METADATA, Program, export
from axnet.models import Calibration, Preprocessing, save_classifier

FINDINGS = ("Effusion", "Nodule", "Mass")
SIZE = 32
CALIBRATION = Calibration(1.7, (0.3, None, 0.5), (0.8, None, 0.7), (0.9, None, 0.6), (120.0, None, 50.0), "Youden", "9")


def needed(*packages):
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'axnet[export]')")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Path of a small Anatomy-XNet whose normalisations are not the identity, and the program as a module."""
    torch.manual_seed(0)
    model = models.AnatomyXNet(3, backbone="tiny")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    save_classifier(path, model.eval(), Preprocessing(size=SIZE), FINDINGS, calibration=CALIBRATION)
    loaded, info = models.load_classifier(path)
    return path, Program(loaded, info).eval()


def inputs(count, layout=torch.contiguous_format):
    torch.manual_seed(count)
    drawn = torch.rand(count, 1, SIZE, SIZE), torch.rand(count, 2, SIZE, SIZE)
    return tuple(t.to(memory_format=layout) for t in drawn)


def check(program, run):
    """Equal to 1e-4 for any number of images in both layouts."""
    for count in (1, 2, 5):
        for layout in (torch.contiguous_format, torch.channels_last):
            given = inputs(count, layout)
            with torch.no_grad():
                wanted, found = program(*given), run(*given)
            assert len(wanted) == len(found) == 4
            for a, b in zip(wanted, found, strict=True):
                torch.testing.assert_close(torch.as_tensor(b), a, rtol=0, atol=1e-4)


def check_metadata(text):
    metadata = json.loads(text)
    assert metadata["findings"] == list(FINDINGS)
    assert metadata["preprocessing"]["size"] == SIZE
    assert Calibration.from_dict(metadata["calibration"]) == CALIBRATION
    assert metadata["inputs"]["mask"]["anatomies"] == ["lungs", "heart"]
    assert metadata["outputs"] == ["logits", "probabilities", "prob_map_0", "prob_map_1"]


def test_pt2(classifier, tmp_path):
    path, program = classifier
    assert export(path, tmp_path / "model.pt2", "pt2") <= 1e-4
    extra = {METADATA: ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    check_metadata(extra[METADATA])
    assert not [n for n in loaded.graph.nodes if "axnet" in str(n.target)]  # standard ops alone
    check(program, loaded.module())


@pytest.mark.slow
def test_pt2_runs_without_axnet(classifier, tmp_path):
    path, program = classifier
    export(path, tmp_path / "model.pt2", "pt2")
    given = inputs(2)
    torch.save(given, tmp_path / "inputs.pt")
    code = (
        "import sys; sys.modules['axnet'] = None; import torch; folder = sys.argv[1]\n"
        "run = torch.export.load(folder + '/model.pt2').module()\n"
        "print(run(*torch.load(folder + '/inputs.pt'))[1].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    with torch.no_grad():
        np.testing.assert_allclose(json.loads(done.stdout), program(*given)[1].numpy(), atol=1e-4)


def test_onnx(classifier, tmp_path):
    needed("onnx", "onnxruntime", "onnxscript")
    import onnx
    import onnxruntime

    path, program = classifier
    assert export(path, tmp_path / "model.onnx", "onnx") <= 1e-4
    model = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    check_metadata(session.get_modelmeta().custom_metadata_map[METADATA])
    assert [i.name for i in session.get_inputs()] == ["image", "mask"]
    check(program, lambda x, m: session.run(None, {"image": x.numpy(), "mask": m.numpy()}))


@pytest.mark.slow
def test_aoti_runs_in_python_and_in_cpp_without_axnet(classifier, tmp_path):
    """The package from Python, and from docs/examples/aoti compiled against this torch."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    path, program = classifier
    package, said = tmp_path / "model.pt2", []
    assert export(path, package, "aoti", said.append) <= 1e-4
    assert said[0].startswith("13 of 30 batch normalisations folded")
    loaded = torch._inductor.aoti_load_package(str(package))
    check_metadata(loaded.get_metadata()[METADATA])
    for count in (1, 2, 5):
        given = inputs(count)
        with torch.no_grad():
            for found, wanted in zip(loaded(*given), program(*given), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)

    base = Path(torch.__file__).parent
    source = Path(__file__).parents[2] / "docs" / "examples" / "aoti" / "classify.cpp"
    includes = [f"-I{base / 'include'}", f"-I{base / 'include/torch/csrc/api/include'}"]
    links = [f"-L{base / 'lib'}", f"-Wl,-rpath,{base / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    built = tmp_path / "classify"
    subprocess.run(["g++", "-std=c++20", *includes, str(source), "-o", str(built), *links], check=True)
    given = inputs(3)
    fed = b"".join(t.numpy().tobytes() for t in given)
    done = subprocess.run([built, package, str(SIZE), "3", "2"], input=fed, capture_output=True, check=True)
    check_metadata(done.stderr.decode())
    found = np.array([line.split() for line in done.stdout.decode().splitlines()], dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(found, program(*given)[1].numpy(), atol=1e-4)
    short = subprocess.run([built, package, str(SIZE), "3", "2"], input=fed[:-4], capture_output=True, check=False)
    assert short.returncode == 1
    assert b"the input ends too early" in short.stderr


def test_the_plain_baseline_takes_images_alone(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "gap.safetensors"
    model = models.DenseNetGAP(2, backbone="tiny").eval()
    save_classifier(path, model, Preprocessing(size=SIZE), ("a", "b"))
    export(path, tmp_path / "gap.pt2", "pt2")
    run = torch.export.load(tmp_path / "gap.pt2").module()
    logits, probabilities = run(inputs(3)[0])
    assert logits.shape == (3, 2)
    torch.testing.assert_close(probabilities, logits.sigmoid())


@pytest.mark.slow
def test_a_program_that_differs_is_not_written(classifier, tmp_path, monkeypatch):
    import axnet.export as module

    path, _ = classifier
    right = module._pt2
    monkeypatch.setattr(module, "_pt2", lambda *a: lambda *given: tuple(t + 1e-2 for t in right(*a)(*given)))
    with pytest.raises(ValueError, match=r"outputs differ from the classifier's by 1\.0e-02"):
        export(path, tmp_path / "model.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(classifier, tmp_path):
    path, _ = classifier
    with pytest.raises(ValueError, match="format is 'tflite', expected one of"):
        export(path, tmp_path / "model.onnx", "tflite")
    with pytest.raises(ValueError, match=r"expected a file \.onnx for format 'onnx'"):
        export(path, tmp_path / "model.pt2", "onnx")
    assert tuple(command.Format) == FORMATS


def test_a_missing_compiler_is_named_before_the_work(tmp_path):
    from torch._inductor import config

    # config.patch puts the setting back; pytest's monkeypatch would remove it, and what compiles later would fail
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"format is 'aoti', which needs a C\+\+ compiler: install g\+\+ or set CXX"),
    ):
        export(tmp_path / "absent.safetensors", tmp_path / "model.pt2", "aoti")
