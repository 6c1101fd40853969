"""Films shared out over two processes: the numbers of one alone, and what becomes of a run that loses one."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import sharing, workers
from processes.sharing import commands, run

from axnet.data import NIH_FINDINGS, write_nih
from axnet.models import AnatomyXNet, Calibration, Preprocessing, load_classifier
from axnet.models.storage import save_classifier
from axnet.segment import PRESETS, Segmenter
from axnet.train import DataConfig, FitConfig, FitResult, XraySet, fit, open_part
from axnet.train.shares import ALONE, Share, shared_out

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without gloo, which connects the processes"
)


def test_whole_batches_are_shared_out() -> None:
    starts = range(0, 300, 64)
    shares = [Share(rank, 2).of(starts) for rank in range(2)]
    assert sorted([*shares[0], *shares[1]]) == list(starts)
    assert list(ALONE.of(starts)) == list(starts)
    with shared_out() as share:
        assert share == ALONE


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return found


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_nih(tmp_path / "nih", 70, size=32)  # a batch of 64, and one of 6
    Segmenter(PRESETS["tiny"]).save(tmp_path / "segmenter.safetensors")
    model = AnatomyXNet(14, backbone="tiny", reduction=0.25)
    findings = NIH_FINDINGS
    save_classifier(tmp_path / "model.safetensors", model, Preprocessing(size=32), findings)
    always = Calibration(1.0, *((value,) * 14 for value in (0.0, 1.0, 0.0, 1000.0)), "all", "films")
    save_classifier(tmp_path / "calibrated.safetensors", model, Preprocessing(size=32), findings, calibration=always)
    prepare = ["--data", "nih", "--root", tmp_path / "nih", "--split", "all", "--size", 32, "--masks", "none"]
    run(["prepare", *prepare, "--workers", 0, "--out", tmp_path / "packed", "--quiet"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have: another number of threads may round otherwise
    try:
        for command in commands(tmp_path, tmp_path / "one"):
            run(command)
    finally:
        torch.set_num_threads(threads)
    first, second = workers.together(sharing.shared, tmp_path, free_ports(4))
    assert second == [""] * 4  # one process speaks
    assert ["mean AUC" in said for said in first] == [True, False, False, False]
    assert "70 images scored" in first[1]
    for name in ("files", "packed", "calls"):
        one, two = ((tmp_path / which / f"{name}.csv").read_bytes() for which in ("one", "two"))
        assert one == two, name
        assert len(one.splitlines()) == 71
    one, two = (
        json.loads((tmp_path / which / "report" / "metrics.json").read_text())["models"] for which in ("one", "two")
    )
    assert one == two


def config(out: Path, **options: Any) -> FitConfig:
    plain = {"backbone": "tiny", "reduction": 0.25, "dropout": 0.0}
    options = {"epochs": 2, "batch_size": 2, "devices": 2, "select": "last", "augmentation": None, **options}
    return FitConfig(out=str(out), accelerator="cpu", progress=False, schedule="constant", options=plain, **options)


def curve(out: Path) -> dict[str, float]:
    """The training loss of each epoch."""
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["epoch"]: float(row["train_loss"]) for row in rows if row.get("train_loss")}


@pytest.fixture(scope="module")
def sets() -> tuple[XraySet, XraySet]:
    data = open_part(DataConfig(train_images=52, workers=0), "train", Preprocessing(size=32))
    train, validation = data.subset(range(32)), data.subset(range(32, 52))
    validation = validation.subset([i for i, who in enumerate(validation.patients) if who not in train.patients])
    return train, validation


@pytest.fixture(scope="module")
def one(sets: tuple[XraySet, XraySet], tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, dict[str, float]]:
    """A run of one process, and its curve."""
    out = tmp_path_factory.mktemp("one")
    return fit(config(out, batch_size=4, devices=1), *sets), curve(out)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_of_two_processes_is_one_on_the_whole_batch_and_can_be_continued_by_one(
    tmp_path: Path, sets: tuple[XraySet, XraySet], one: tuple[FitResult, dict[str, float]], strategy: str
) -> None:
    (tmp_path / "a").mkdir()
    begun = config(tmp_path / "two", epochs=1, strategy=strategy)
    first, second = workers.together(workers.train, tmp_path / "a", begun, sets)
    assert sorted(first["seen"] + second["seen"]) == list(range(32))  # each film once
    with pytest.raises(ValueError, match=r"batch_size is 3, but the run in .* began with 2"):
        fit(config(tmp_path / "two", batch_size=3, devices=1, resume=True), *sets)
    continued = fit(config(tmp_path / "two", batch_size=4, devices=1, resume=True), *sets)
    assert continued.steps == one[0].steps == 16
    assert curve(tmp_path / "two") == pytest.approx(one[1], rel=2e-3)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_shares(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    """With what it keeps: averaged weights, Adam's state of each parameter, the best epoch; one process writes."""
    out, settings = tmp_path / "out", {"precision": "64-true", "layer_decay": 0.9, "select": "best"}
    whole = fit(config(tmp_path / "one", batch_size=4, devices=1, **settings), *sets)
    fit(config(out, epochs=1, batch_size=4, devices=1, **settings), *sets)
    continued = config(out, strategy="fsdp2", resume=True, **settings)
    first, second = workers.together(workers.train, tmp_path, continued, sets)
    assert curve(out) == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
    assert first["val_auc"] == second["val_auc"] == pytest.approx(whole.val_auc, abs=1e-6)
    assert second["written"] == []
    model, _ = load_classifier(out / "model.safetensors")
    assert list(model.state_dict()) == list(first["state"]) == list(whole.model.state_dict())
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-6, atol=1e-7, msg=name)
        assert torch.equal(second["state"][name], first["state"][name]), name
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, check_dtype=False, msg=name)
    stored = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (tmp_path / "one", out)]
    assert list(stored[0]["state_dict"]) == list(stored[1]["state_dict"])
    moments = [state["optimizer_states"][0]["state"] for state in stored]
    for number, expected in moments[0].items():
        torch.testing.assert_close(moments[1][number], expected, rtol=1e-5, atol=1e-7)


LOST = """
import os, signal, sys
sys.argv[0] = "axnet"
from axnet.cli import main
from axnet.train import {module}
plain = {module}.{name}
def step(*arguments, **options):
    if os.environ["RANK"] == "1" and {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments, **options)
{module}.{name} = step
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "when", "arguments"),
    [
        (
            "module",
            "ClassifierModule.training_step",
            "arguments[0].current_epoch == 1",
            "fit --train-images 40 --epochs 3 -q",
        ),
        (
            "module",
            "ClassifierModule.training_step",
            "arguments[0].current_epoch == 1",
            "fit --train-images 40 --epochs 3 -q --strategy fsdp2 --precision bf16-mixed",
        ),
        ("scoring", "to_input", "True", "evaluate --test-images 130 --weights model.safetensors"),
    ],
)
def test_torchrun_that_loses_a_process_ends_with_a_sentence(
    tmp_path: Path, module: str, name: str, when: str, arguments: str
) -> None:
    save_classifier(
        tmp_path / "model.safetensors",
        AnatomyXNet(14, backbone="tiny", reduction=0.25),
        Preprocessing(size=32),
        NIH_FINDINGS,
    )
    (tmp_path / "run.py").write_text(LOST.format(module=module, name=name, when=when))
    small = "--size 32 --backbone tiny --batch-size 4 --accelerator cpu" if module == "module" else ""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_ports(1)[0]),
    ]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "run.py", *arguments.split(), *small.split(), "--workers", "0"],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert time.monotonic() - started < 300
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("axnet: ")]
    assert len(said) == 1, done.stderr[-4000:]
    assert "another of the 2 processes of this run has ended; " in said[0]
