from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
import torch
import yaml
from command import run
from safetensors.torch import load_file
from typer.testing import CliRunner

import axnet.cli
from axnet.cli import app
from axnet.data import write_nih
from axnet.models import DenseNetGAP, Preprocessing, save_classifier
from axnet.segment.pretrained import WEIGHTS
from axnet.train.anatomy import SEGMENTER_NAME

EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
COMMANDS = ("demo", "fit", "evaluate", "predict", "segment", "bench", "info")
SMALL = ("--backbone", "tiny", "--size", "48", "--batch-size", "8", "--workers", "0", "--accelerator", "cpu", "--quiet")


def shell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from axnet.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("data") / "nih", 72, seed=4, size=64, test_fraction=0.4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "small"
    run("fit", "--out", out, "--train-images", 48, "--epochs", 1, "--val-fraction", 0.3, *SMALL)
    return out


def test_help_names_every_command() -> None:
    text = run("--help")
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        assert "Usage" in run(command, "--help")


def test_help_is_complete() -> None:
    import typer

    group = typer.main.get_command(app)
    for name in ("demo", "fit", "evaluate", "predict"):
        command = group.commands[name]
        assert command.help
        assert all(getattr(parameter, "help", None) for parameter in command.params), name


def test_help_loads_no_heavy_package() -> None:
    code = "import sys, axnet.cli; print([m for m in ('lightning', 'monai', 'pandas', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_info() -> None:
    text = run("info")
    assert "torch" in text
    assert "reference" in text


def test_fit_writes_a_run(trained: Path) -> None:
    assert (trained / "model.safetensors").is_file()
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "logs" / "metrics.csv").is_file()
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["backbone"] == "tiny"
    assert settings["val_fraction"] == 0.3
    assert settings["lr"] == 3e-4


def test_a_run_is_repeated_from_its_settings(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "backbone: tiny\nsize: 32\nbatch-size: 8\nworkers: 0\naccelerator: cpu\ntrain-images: 24\nval-fraction: 0.3\n"
        "epochs: 9\nloss: asymmetric\nlabel-smoothing: 0.1\nmixup: 0.3\nsampling: balanced\nlayer-decay: 0.8\n"
        "gamma: 0.3\nmoved: 0.5\nblur: 0.5\nerase: 0.5\nlogger: csv\n"
    )
    run("fit", "--config", tmp_path / "recipe.yaml", "--epochs", 1, "--out", tmp_path / "a", "--quiet")
    settings = tmp_path / "a" / "config.yaml"
    assert yaml.safe_load(settings.read_text())["epochs"] == 1  # the flag, not the file
    assert not list((tmp_path / "a" / "logs").glob("events*"))
    run("fit", "--config", settings, "--out", tmp_path / "b", "--quiet")
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    before = settings.read_bytes()
    with pytest.raises(ValueError, match=r"mixup is 0\.0, but the run in '.*' began with 0\.3"):
        run("fit", "--config", settings, "--out", tmp_path / "a", "--quiet", "--resume", "--mixup", 0)
    assert settings.read_bytes() == before


def test_resume(trained: Path) -> None:
    text = run("fit", "--out", trained, "--train-images", 48, "--epochs", 2, "--val-fraction", 0.3, "--resume", *SMALL)
    assert "validation AUC" in text


def test_evaluate_compares_two(trained: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    run("fit", "--out", plain, "--train-images", 48, "--epochs", 1, "--architecture", "densenet-gap", *SMALL)
    weights, baseline = trained / "model.safetensors", plain / "model.safetensors"
    out = tmp_path / "report"
    text = run(
        "evaluate", "--weights", weights, "--baseline", baseline, "--test-images", 60, "--workers", 0, "--out", out
    )
    record = json.loads((out / "metrics.json").read_text())
    assert list(record["models"]) == ["small", "plain"]
    assert record["difference"]["low"] <= record["difference"]["value"] <= record["difference"]["high"]
    mean = record["models"]["small"]["mean_auc"]["value"]
    assert f"{mean:.3f}" in text
    page = (out / "report.html").read_text()
    assert "Cardiomegaly" in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_nih_takes_the_segmenter_that_comes_with_axnet(nih: Path, tmp_path: Path) -> None:
    run("fit", "--data", "nih", "--root", nih, "--out", tmp_path, "--epochs", 1, *SMALL)
    assert (tmp_path / SEGMENTER_NAME).read_bytes() == WEIGHTS.read_bytes()
    held_out = (tmp_path / "validation.txt").read_text().split()
    assert 0 < len(held_out) < 40
    assert not set(held_out) & set((nih / "test_list.txt").read_text().split())
    assert (tmp_path / "model.safetensors").is_file()
    lists = {name: (tmp_path / name).read_bytes() for name in ("validation.txt", "films.txt")}
    assert set(held_out) < set(lists["films.txt"].decode().split())
    patients = {name.partition("_")[0] for name in lists["films.txt"].decode().split()}
    assert (tmp_path / "patients.txt").read_text().split() == sorted(f"nih/{patient}" for patient in patients)
    with pytest.raises(ValueError, match=r"seed is 5, but the run in '.*' began with 0"):
        run("fit", "--data", "nih", "--root", nih, "--out", tmp_path, "--epochs", 2, "--resume", *SMALL, "--seed", 5)
    assert {name: (tmp_path / name).read_bytes() for name in lists} == lists  # still those of the weights


def test_nih_needs_a_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data 'nih' needs root"):
        run("fit", "--data", "nih", "--out", tmp_path, *SMALL)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--strategy", "fsdp2", "--devices", 1), "strategy is 'fsdp2' with 1 process, expected several processes"),
        (("--compile", "--devices", 2), "compile is on with 2 processes, expected one process with it"),
    ],
)
def test_processes_are_counted_before_films_are_read(tmp_path: Path, option: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("fit", "--out", tmp_path / "out", *option, *SMALL)
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_sentence(tmp_path: Path) -> None:
    done = shell("evaluate", "--weights", tmp_path / "none.safetensors", "--workers", 0)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("axnet: ")
    assert "none.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    traced = shell("evaluate", "--weights", tmp_path / "none.safetensors", AXNET_TRACEBACK="1")
    assert traced.returncode == 1
    assert "Traceback" in traced.stderr


def test_usage_errors_come_from_the_parser() -> None:
    done = shell("fit", "--epochs", 0)
    assert done.returncode == 2
    assert "--epochs" in done.stderr
    assert shell("paint").returncode == 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("size is 0,\n  expected more."), "axnet: size is 0, expected more."),
        (KeyError("Effusion"), "axnet: key 'Effusion' is missing."),
        (ModuleNotFoundError("no", name="monai"), "axnet: this command needs the package 'monai': pip install"),
        (
            ModuleNotFoundError("backbone 'timm:x' needs timm: pip install timm", name="timm"),
            "axnet: backbone 'timm:x' needs timm: pip install timm",
        ),
        (FileNotFoundError("file 'x' does not exist."), "axnet: file 'x' does not exist."),
    ],
)
def test_sentences(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(axnet.cli, "app", fail)
    monkeypatch.delenv("AXNET_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        axnet.cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)
    monkeypatch.setenv("AXNET_TRACEBACK", "1")
    with pytest.raises(type(error)):
        axnet.cli.main()


def test_the_plain_classifier_needs_no_masks(nih: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    run("fit", "--data", "nih", "--root", nih, "--out", out, "--architecture", "densenet-gap", "--epochs", 1, *SMALL)
    weights, table = out / "model.safetensors", tmp_path / "scores.csv"
    run("predict", nih / "images", "--weights", weights, "--out", table)
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 72
    assert all(0 < float(row["Effusion"]) < 1 for row in rows)
    text = run("evaluate", "--data", "nih", "--root", nih, "--weights", weights, "--workers", 0, "--out", tmp_path)
    assert "mean AUC" in text
    with pytest.raises(ValueError, match="holds no PNG or JPEG"):
        run("predict", tmp_path / "plain", "--weights", weights)
    with pytest.raises(FileNotFoundError, match=r"none\.png' does not exist"):
        run("predict", tmp_path / "none.png", "--weights", weights)
    with pytest.raises(ValueError, match="images holds an empty name, expected files or folders"):
        run("predict", "", "--weights", weights)


def scores(table: Path) -> dict[str, float]:
    with table.open() as stream:
        return {row["image"]: float(row["Effusion"]) for row in csv.DictReader(stream)}


def test_predict_scores_what_can_be_read_and_names_the_rest(plain_weights: Path, nih: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "films", tmp_path / "no" / "such" / "p.csv"
    for k, path in enumerate(sorted((nih / "images").iterdir())[:3]):
        target = folder / f"patient{k}" / "study1" / "view1_frontal.png"
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    (folder / "patient0" / "._view1_frontal.png").write_bytes(b"\0\5\x16\7")
    (folder / "IM0001").write_bytes((EXAMPLES / "MR_small.dcm").read_bytes())
    (folder / "x.DCM").write_bytes((EXAMPLES / "CT_small.dcm").read_bytes())
    arguments = ["predict", str(folder), "--weights", str(plain_weights), "--out", str(table)]
    assert "5 images scored" in run(*arguments)
    whole = scores(table)
    names = [f"patient{k}/study1/view1_frontal.png" for k in range(3)]
    assert list(whole) == ["IM0001", *names, "x.DCM"]
    cut = folder / names[1]
    cut.write_bytes(cut.read_bytes()[:100])
    done = shell(*arguments)
    assert done.returncode == 1
    assert "4 images scored, 1 failed" in done.stdout
    assert done.stderr.startswith(f"failed: {cut}: image file '{cut}' is truncated")
    assert done.stderr.count("\n") == 1
    assert scores(table) == {name: value for name, value in whole.items() if name != names[1]}
    assert [path.name for path in table.parent.iterdir()] == ["p.csv"]
    alone = shell("predict", cut, "--weights", plain_weights)
    assert alone.returncode == 1
    assert alone.stdout.splitlines() == [table.read_text().splitlines()[0]]


def test_predict_looks_at_its_output_before_the_work(nih: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, words in ((tmp_path, "a folder, expected a file"), (tmp_path / "file" / "p.csv", "cannot be made")):
        with pytest.raises(ValueError, match=words):
            run("predict", nih / "images", "--weights", tmp_path / "none", "--out", out)


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that takes no masks, untrained."""
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_classifier(path, DenseNetGAP(2, backbone="tiny"), Preprocessing(size=48), ("Effusion", "Mass"))
    return path


def test_the_shell_completes_commands():
    asked = {"_AXNET_COMPLETE": "complete_bash", "COMP_WORDS": "axnet pre", "COMP_CWORD": "1"}
    result = CliRunner().invoke(app, [], prog_name="axnet", env=asked)
    assert result.output.split() == ["prepare", "predict"]


@pytest.mark.parametrize(
    "command",
    [
        ("demo", "--out"),
        ("bench", "--out"),
        ("segment", "fit", "--data", "phantom", "--out"),
        ("segment", "predict", "IMAGE", "--out"),
        ("fit", "--out"),
        ("evaluate", "--weights", "IMAGE", "--out"),
        ("prepare", "--data", "csv", "--root", "IMAGE", "--out"),
        ("export", "IMAGE", "--format", "pt2", "--out"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_looks_at_its_output_before_the_work(command: tuple[str, ...], tmp_path: Path) -> None:
    """A file where a folder belongs, and the other way round."""
    image, folder = tmp_path / "film.png", tmp_path / "folder.png"
    image.write_bytes(b"")
    folder.mkdir()
    for out in (image / "inside" / "out", image if command[0] in ("demo", "fit", "evaluate", "prepare") else folder):
        if out == folder and command[1] == "predict":
            continue  # which takes a folder
        with pytest.raises(
            ValueError, match=r"--out(: folder '.*film\.png.*' cannot be made|.*a folder, expected a file)"
        ):
            run(*(str(image) if word == "IMAGE" else word for word in command), out)
    assert image.read_bytes() == b""
