from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from axnet.bench import Case, forms_of, summary
from axnet.bench.measure import Record, check, saved_share
from axnet.cli import app

SHAPE = (2, 24, 6, 5)
ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.classifier_card import card  # noqa: E402


@pytest.mark.parametrize("task", ("a3", "a3+mlp", "pwap1", "pwap14"))
@pytest.mark.parametrize("mode", ("eval", "training"))
@pytest.mark.parametrize("layout", ("NCHW", "channels_last"))
def test_all_forms_compute_the_same(task, mode, layout):
    case = Case(task, mode, SHAPE, layout)
    calls = forms_of(case, ("axnet", "eager", "peers"))
    check(case, calls)
    assert len(calls["axnet"]()) == (2 if mode == "training" or task.startswith("pwap") else 1)


def test_a_wrong_form_is_not_timed():
    case = Case("pwap1", "eval", SHAPE, "NCHW")
    calls = forms_of(case, ("axnet", "eager"))
    right = calls["axnet"]
    calls["axnet"] = lambda: tuple(t * 1.1 for t in right())
    with pytest.raises(RuntimeError, match="axnet differs from eager by"):
        check(case, calls)


def test_one_wrong_number_of_an_output_is_enough():
    case = Case("a3+mlp", "training", SHAPE, "NCHW")
    calls = forms_of(case, ("axnet", "eager"))
    right = calls["axnet"]

    def wrong(place: int, share: float) -> tuple[torch.Tensor, ...]:
        outputs = [t.clone() for t in right()]
        outputs[place].view(-1)[: max(1, int(share * outputs[place].numel()))] += 1
        return tuple(outputs)

    for place, share in ((0, 0.0), (1, 0.01)):  # the output; the gradient, where a kink may change a few numbers
        calls["axnet"] = lambda place=place, share=share: wrong(place, share)
        with pytest.raises(RuntimeError, match="axnet differs from eager by"):
            check(case, calls)


def test_floor_counts_every_pass_once():
    x = 2 * 24 * 30 * 4
    assert Case("a3", "eval", SHAPE, "NCHW").floor_bytes == 3 * x
    assert Case("a3", "training", SHAPE, "NCHW").floor_bytes == 8 * x
    assert Case("pwap14", "eval", SHAPE, "NCHW").floor_bytes == x
    assert Case("pwap14", "training", SHAPE, "NCHW", torch.bfloat16).floor_bytes == 3 * x // 2
    assert Case("a3+mlp", "eval", SHAPE, "NCHW").floor_bytes == 3 * x + 10 * 24 * 24 * 4


def test_summary_is_the_geometric_mean_and_the_least():
    def record(form, shape, median):
        return Record("a3", "eval", shape, "NCHW", form, 0, median, 0, 5, 0, 0)

    records = [record("axnet", (1,), 1.0), record("eager", (1,), 2.0), record("axnet", (2,), 1.0)]
    records.append(record("eager", (2,), 8.0))
    expected = {("a3", "eval", "eager"): {"mean": pytest.approx(4.0), "least": 2.0}}
    assert summary(records) == expected
    records += [record("compile", (1,), 3.0), record("axnet-compile", (1,), 0.5)]
    expected["a3", "eval", "compile"] = {"mean": pytest.approx(3.0), "least": 3.0}
    expected["a3", "eval", "compile, both"] = {"mean": pytest.approx(6.0), "least": 6.0}
    assert summary(records) == expected


def test_saved_share_counts_x_itself():
    assert 1.0 < saved_share((2, 16, 32, 32)) < 1.1


def test_command_writes_records(tmp_path):
    arguments = ["bench", "--shape", "2,8,4,4", "--task", "pwap1", "--mode", "eval", "--seconds", "0.01", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert {r["form"] for r in record["records"]} == {"axnet", "eager", "peers"}
    assert record["environment"]["torch"] == torch.__version__
    CliRunner().invoke(app, [*arguments, str(tmp_path / "r.csv")])
    with (tmp_path / "r.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(record["records"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "2,8,4"], "shape is '2,8,4', expected four positive numbers N,C,H,W"),
        (["--task", "a4"], "task is 'a4', expected one of"),
        (["--form", "eager"], "expected axnet among the forms"),
    ],
)
def test_bad_options(arguments, words):
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)


def test_readme_tables_are_those_of_the_records():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_card_of_the_classifier_is_what_its_record_says():
    record = json.loads((ROOT / "benchmarks" / "results" / "classifier.json").read_text())
    assert (ROOT / "axnet" / "models" / "weights" / "frontal.md").read_text() == card(record)


def test_ci_runs_the_command_of_the_readme():
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("axnet demo")
    assert commands[1].endswith("pytest")


@pytest.mark.slow
def test_the_gpu_script_runs_where_there_is_none(tmp_path):
    script = ROOT / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    command += ["--steps", "facts,check,passes,blocks,graph,heads,models,sanitize"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow on a busy machine
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["check same bits"] is True
    assert not [row for row in record["blocks"] if "error" in row]
    assert {row["form"] for row in record["blocks"]} >= {"native", "eager", "peers"}
    assert all(row["largest difference"] < 0.02 for row in record["heads"])
    assert len(record["passes"]) == 2 * 2 * 9 * len({row["backend"] for row in record["passes"]})
    assert {row["mode"] for row in record["models"]} == {"eval", "training"}
    assert len({row["model"] for row in record["models"]}) == 3
    assert len((tmp_path / "gpu.txt").read_text().splitlines()) < 60
    # the same command again measures nothing twice
    before = (tmp_path / "gpu.jsonl").read_text().splitlines()
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    after = (tmp_path / "gpu.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in after[len(before) :]} == {"facts"}
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    table = report.gpu_tables(record)
    assert "| moments, bfloat16 |" in table
    assert "a3+mlp training 2x64x7x7 NCHW float32" in table


def test_the_record_of_a_gpu_survives_a_cut(tmp_path):
    from benchmarks.gpu_record import Record

    record = Record(tmp_path)
    record.put("passes", "one", [{"median": 1.0}])
    record.put("passes", "two", [{"median": 2.0}])
    text = record.file.read_text()
    record.file.write_text(text[:-20])  # killed while it wrote
    again = Record(tmp_path)
    assert again.has("passes", "one")
    assert not again.has("passes", "two")
    again.put("passes", "two", [{"median": 3.0}])
    assert Record(tmp_path).summary()["passes"] == [{"median": 1.0}, {"median": 3.0}]
    again.file.write_text(again.file.read_text().replace(again.sources, "of other sources"))
    assert Record(tmp_path).values == {}


def test_a_step_ends_at_its_limit(tmp_path):
    from benchmarks import gpu

    slow = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    result = gpu.run(slow, tmp_path / "slow.log", 3)
    assert result["code"] == "stopped after 3 s"
    assert result["seconds"] < 30
    assert gpu.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "bad.log", 60)["code"] == 3


def test_the_gpu_script_wants_a_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)]
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "There is no GPU that torch can use; --device cpu --quick tries this script out."
    done = subprocess.run([*command, "--steps", "paint"], capture_output=True, text=True, check=False)
    assert "--steps has 'paint', accepted are build, facts" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_wants_a_gpu_where_one_is_asked_for():
    result = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    assert str(result.exception) == "device is 'cuda', and torch finds no GPU; expected 'cpu' here."
