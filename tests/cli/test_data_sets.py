"""Every data set through the commands: fit, evaluate, predict, on miniatures of its layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command import run
from PIL import Image

from axnet.data import CHEXPERT_FINDINGS, NIH_FINDINGS, NIHChestXray, PhantomXray, write_nih
from axnet.data.uncertainty import read_policy
from axnet.models import load_classifier

OWN_NAMES = ["Pleural Effusion" if name == "Effusion" else name for name in CHEXPERT_FINDINGS]
PATIENTS = 16
VIEWS = ("AP", "PA")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def labels(patient: int) -> dict[str, str]:
    """Positive, negative, uncertain and blank in turn; a test patient's are known."""
    known = patient >= PATIENTS // 2
    values = ["1.0", "0.0"] if known else ["1.0", "0.0", "-1.0", ""]
    return {name: values[(patient + place // 2) % len(values)] for place, name in enumerate(OWN_NAMES)}


def chexpert(root: Path) -> list[Path]:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "valid": []}
    for patient in range(PATIENTS):
        side = "train" if patient < PATIENTS // 2 else "valid"
        name = f"CheXpert-v1.0-small/{side}/patient{patient:05d}/study1/view1_frontal.jpg"
        who = {"Sex": ("Male", "Female")[patient % 2], "Age": 30 + 4 * patient}
        rows[side].append({"Path": name, **who, "Frontal/Lateral": "Frontal", "AP/PA": VIEWS[patient // 2 % 2]})
        rows[side][-1] |= labels(patient)
    for side, found in rows.items():
        write(root / f"{side}.csv", found)
    return [root / row["Path"].partition("/")[2] for found in rows.values() for row in found]


def mimic(root: Path) -> list[Path]:
    tables: dict[str, list[dict[str, Any]]] = {"metadata": [], "split": [], "chexpert": []}
    files = []
    for patient in range(PATIENTS):
        who = {"subject_id": f"{10000000 + patient}", "study_id": f"{50000000 + patient}"}
        dicom = {"dicom_id": f"{patient:08x}-00000000"}
        tables["metadata"].append({**dicom, **who, "ViewPosition": VIEWS[patient % 2]})
        tables["split"].append({**dicom, **who, "split": "train" if patient < PATIENTS // 2 else "test"})
        tables["chexpert"].append({**who, **labels(patient)})
        files.append(root / f"files/p10/p{who['subject_id']}/s{who['study_id']}/{dicom['dicom_id']}.jpg")
    for name, rows in tables.items():
        write(root / f"mimic-cxr-2.0.0-{name}.csv", rows)
    return files


def table(root: Path) -> list[Path]:
    rows = [
        {"path": f"films/{patient}.png", "fold": "train" if patient < PATIENTS // 2 else "test", **labels(patient)}
        for patient in range(PATIENTS)
    ]
    write(root / "films.csv", rows)
    (root / "films.json").write_text(json.dumps({"split": "fold"}))
    return [root / row["path"] for row in rows]


def nih(root: Path) -> list[Path]:
    write_nih(root, PATIENTS, size=48, test_fraction=0.5)
    return [root / "images" / name for name in NIHChestXray(root, "all").ids]


@pytest.mark.parametrize("layout", [chexpert, mimic, table, nih])
def test_prepare_fit_evaluate_and_predict(tmp_path: Path, layout: Any) -> None:
    """Packed films give what the downloaded ones give: the same weights, the same numbers to the last digit."""
    root, out = tmp_path / "set", tmp_path / "run"
    root.mkdir()
    drawn = PhantomXray(PATIENTS, size=48)
    files = layout(root)
    for index, path in enumerate(files if layout is not nih else ()):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(drawn.sample(index).image)).save(path)
    name = "csv" if layout is table else layout.__name__
    data = ["--data", name, "--root", root, "--workers", 0]
    small = ["--architecture", "densenet-gap", "--backbone", "tiny", "--size", 32, "--epochs", 1, "--batch-size", 4]
    small += ["--uncertain", "smooth", "--val-fraction", 0.3, "--quiet", "--accelerator", "cpu"]
    said = run("fit", *data, *small, "--out", out)
    train_split, test_split = {
        "chexpert": ("chexpert-train", "chexpert-valid"),
        "mimic": ("mimic-official-train", "mimic-official-test"),
        "csv": ("films-train", "films-test"),
        "nih": ("nih-train_val", "nih-test"),
    }[name]
    assert f"split {train_split} " in said
    train = int(said.split("train: ")[1].split()[0])
    lines = [line.split() for line in said.splitlines() if line.startswith("Effusion")]
    assert sum(map(int, lines[0][1:])) == train
    weights = out / "model.safetensors"
    assert "mean AUC" in run("evaluate", *data, "--weights", weights, "--out", tmp_path / "report")
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert record["run"]["split name"] == test_split
    run("predict", files[0].parent, "--weights", weights, "--out", tmp_path / "p.csv")
    head, *rows = (tmp_path / "p.csv").read_text().splitlines()
    assert head == ",".join(("image", *(NIH_FINDINGS if layout is nih else CHEXPERT_FINDINGS)))

    packed = ["--root", tmp_path / "packed", "--workers", 0]
    said = run("prepare", *data, "--size", 32, "--masks", "none", "--out", tmp_path / "packed", "--quiet")
    assert f"{PATIENTS} films packed: " in said
    assert f"split {train_split} " in run("fit", *packed, *small, "--out", tmp_path / "again")
    other = load_classifier(tmp_path / "again" / "model.safetensors")[0].state_dict()
    for key, value in load_classifier(weights)[0].state_dict().items():
        assert torch.equal(other[key], value), key
    run("evaluate", *packed, "--weights", weights, "--out", tmp_path / "report")
    again = json.loads((tmp_path / "report" / "metrics.json").read_text())
    for entry in ("models", "split_hash", "subgroups", "localisation"):
        assert again[entry] == record[entry]
    known = {"chexpert": {"sex", "age", "view"}, "mimic": {"view"}, "csv": set(), "nih": {"age", "view"}}
    assert {part["attribute"] for part in record["subgroups"]} == known[name]
    assert bool(record["localisation"]) == (layout is nih)
    assert again["run"]["split name"] == test_split
    assert again["run"]["data"] == record["run"]["data"] == name
    run("predict", tmp_path / "packed", "--weights", weights, "--out", tmp_path / "p.csv")
    scores = {row.partition(",")[2] for row in (tmp_path / "p.csv").read_text().splitlines()[1:]}
    assert len(scores) == PATIENTS
    assert {row.partition(",")[2] for row in rows} <= scores


def test_several_sets_at_once(tmp_path: Path) -> None:
    """As they are and packed, with the same numbers."""
    roots = [tmp_path / "nih", tmp_path / "chexpert"]
    write_nih(roots[0], PATIENTS, size=48, test_fraction=0.5)
    roots[1].mkdir()
    for path in chexpert(roots[1]):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(PhantomXray(1, size=48).sample(0).image)).save(path)
    for name, root in zip(("nih", "chexpert"), roots, strict=True):
        arguments = ["--size", 32, "--masks", "none", "--workers", 0, "--quiet", "--out", tmp_path / f"{name}-packed"]
        run("prepare", "--data", name, "--root", root, *arguments)
    small = ["--architecture", "densenet-gap", "--backbone", "tiny", "--size", 32, "--epochs", 1, "--batch-size", 8]
    small += ["--uncertain", "ones", "--quiet", "--accelerator", "cpu", "--workers", 0]
    named = ["--data", "nih,chexpert", "--root", ",".join(map(str, roots))]
    packed = ["--root", ",".join(f"{tmp_path}/{name}-packed" for name in ("nih", "chexpert"))]
    said = run("fit", *named, *small, "--out", tmp_path / "one")
    assert "split nih-train_val+chexpert-train " in said
    run("fit", *packed, *small, "--out", tmp_path / "two")
    one, two = (load_classifier(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one[1].classes == two[1].classes == tuple(dict.fromkeys((*NIH_FINDINGS, *CHEXPERT_FINDINGS)))
    for key, value in one[0].state_dict().items():
        assert torch.equal(two[0].state_dict()[key], value), key
    run("evaluate", *packed, "--weights", tmp_path / "one" / "model.safetensors", "--out", tmp_path / "report")
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert record["run"]["split name"] == "nih-test+chexpert-valid"
    with pytest.raises(ValueError, match="data names 2 sets, root 1 folders and split 2 splits, expected as many"):
        run("fit", "--data", "nih,chexpert", "--root", roots[0], "--out", tmp_path / "run")
    with pytest.raises(ValueError, match="data is 'nih,chexpert', expected one set"):
        run("prepare", *named, "--out", tmp_path / "p")


def test_a_classifier_of_one_set_on_another(tmp_path: Path) -> None:
    """What the other set does not label is left out of the numbers."""
    root, out = tmp_path / "set", tmp_path / "run"
    root.mkdir()
    for path in chexpert(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(PhantomXray(1, size=48).sample(0).image)).save(path)
    small = ["--architecture", "densenet-gap", "--backbone", "tiny", "--size", 32, "--epochs", 1, "--batch-size", 8]
    run("fit", *small, "--out", out, "--train-images", 24, "--workers", 0, "--quiet", "--accelerator", "cpu")
    data = ["--data", "chexpert", "--root", root, "--workers", 0, "--blank", "ignore"]
    run("evaluate", *data, "--weights", out / "model.safetensors", "--out", tmp_path / "report")
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    (model,) = record["models"].values()
    shown = {entry["class"]: entry["positives"] + entry["negatives"] for entry in model["classes"]}
    assert shown["Effusion"] == PATIENTS // 2
    assert shown["Hernia"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--uncertain", "perhaps"], "uncertain is 'perhaps', expected"),
        (["--uncertain", "none.json"], "uncertain is 'none.json', which cannot be read"),
        (["--blank", "ones"], "blank is 'ones', expected 'zeros' or 'ignore'"),
        (["--data", "phantom", "--blank", "zeros"], "data 'phantom' takes no blank"),
        (["--split", "none.txt"], "split list 'none.txt' does not exist"),
        (["--views", "back"], "views is .*back"),
        (["--data", "phantom", "--uncertain", "ones"], "data 'phantom' takes no uncertain"),
        (["--data", "mimic"], r"holds no mimic-cxr.* it looks like CheXpert"),
    ],
)
def test_wrong_options_get_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    for path in chexpert(tmp_path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run("fit", "--data", "chexpert", "--root", tmp_path, "--out", tmp_path / "run", *arguments)


def test_a_policy_is_kept_with_the_run(tmp_path: Path) -> None:
    """Its content, as the file may change or go; here the run ends at its split, when its settings are written."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"Edema": "ones", "*": ["smooth", 0.6, 0.8]}))
    chexpert(tmp_path)
    data = ("--data", "chexpert", "--root", tmp_path, "--split", "none.txt", "--out", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        run("fit", *data, "--uncertain", policy)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["uncertain"]
    assert read_policy(kept) == {"Edema": "ones", "*": ["smooth", 0.6, 0.8]}
