"""Batch normalisation over several processes on a CPU, and what becomes of a run that loses one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import normalising, workers
from torch import nn

from axnet.models import AnatomyXNet
from axnet.train.synchronised import SyncBatchNorm, separate, synchronised

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without gloo, which connects the processes"
)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    return workers.together(normalising.work, tmp_path_factory.mktemp("halves"))


@pytest.mark.parametrize("case", normalising.CASES)
def test_two_processes_normalise_as_one_with_the_whole_batch(halves: list, case: str) -> None:
    whole = normalising.step(normalising.network(case), normalising.images(case))
    first, second = (half[case] for half in halves)
    tight = {"rtol": 1e-10, "atol": 1e-12} if case == "float64" else {"rtol": 2e-5, "atol": 2e-5}
    for name, expected in whole.items():
        if name == "eval":
            torch.testing.assert_close(torch.cat((first[name], second[name])), expected, **tight)
        elif name == "output":  # of two steps
            (a, b), (c, d) = first[name].split(2), second[name].split(4)
            torch.testing.assert_close(torch.cat((a, c, b, d)), expected, **tight)
        else:
            for found in (first[name], second[name]):
                torch.testing.assert_close(found, expected, **tight)


def test_alone_it_is_batch_normalisation_and_it_can_be_undone() -> None:
    net, same = normalising.network("plain"), normalising.network("plain")
    synchronised(same)
    assert isinstance(same[1], SyncBatchNorm)
    x = normalising.images("plain")
    expected, found = normalising.step(net, x), normalising.step(same, x)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    separate(same)
    assert type(same[1]) is nn.BatchNorm2d
    assert list(same.state_dict()) == list(net.state_dict())


def test_the_kernels_of_attention_synchronise_themselves() -> None:
    net = AnatomyXNet(2, backbone="tiny", reduction=0.25).eval()
    image, mask = torch.randn(2, 1, 32, 32), torch.rand(2, 2, 32, 32)
    with torch.no_grad():
        expected = net(image, mask).logits
        synchronised(net)
        assert {type(attention.norm) for attention in net.attention} == {nn.SyncBatchNorm}  # which A3 fuses
        assert type(net.backbone.features.norm0) is SyncBatchNorm
        assert torch.equal(net(image, mask).logits, expected)
        separate(net)
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in net.modules())
        assert torch.equal(net(image, mask).logits, expected)


WATCHED = """
import os, signal, sys, time
from axnet.cli import processes
if processes.started_by_another():
    if processes.rank() == {who}: {does}
    time.sleep(120)
try: processes.run_together(2, {{}})
except ChildProcessError as error: sys.exit(str(error))
"""


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, so the others were ended too; --resume"),
        ("sys.exit('axnet: out of luck')", "ended with code 1, so the others were ended too"),
    ],
)
def test_a_lost_process_ends_the_others_with_a_sentence(who: int, does: str, words: str) -> None:
    started = time.monotonic()
    code = WATCHED.format(who=who, does=does)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert time.monotonic() - started < 60
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"process {who + 1} of 2 {words}")
    if who == 1 and "luck" in does:
        assert done.stderr.endswith("too: out of luck\n")


COMMAND = """
import os, signal, sys
from axnet.cli import main
from axnet.train import module
plain = module.ClassifierModule.training_step
def step(self, batch, index):
    if os.environ.get("KILL") == os.environ["RANK"] and self.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batch, index)
module.ClassifierModule.training_step = step
main()
"""


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(COMMAND)
    arguments = (
        "fit --train-images 40 --epochs 2 --size 32 --backbone tiny --batch-size 4 --accelerator cpu --workers 0 -q"
    )
    command = [
        sys.executable,
        tmp_path / "run.py",
        *arguments.split(),
        "--val-fraction",
        "0.3",
        "--devices",
        "2",
        "--out",
    ]

    def run(out: str, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        done = [*command, tmp_path / out, *more]
        return subprocess.run(done, capture_output=True, text=True, timeout=500, env=environment)

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    lines = whole.stdout.splitlines()
    assert lines[0] == "reading the train images: 40 films ..."
    assert sum(line.startswith("train: ") for line in lines) == 1  # one process speaks
    assert lines[-1] == str(tmp_path / "whole" / "model.safetensors")
    for rank in ("1", "0"):
        lost = run("lost", KILL=rank)
        assert lost.returncode == 2
        assert f"axnet: process {int(rank) + 1} of 2 was killed by SIGKILL, so the others were ended" in lost.stderr
        assert not (tmp_path / "lost" / "model.safetensors").exists()
    resumed = run("lost", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    records = [json.loads((tmp_path / out / "config.json").read_text()) for out in ("whole", "lost")]
    assert records[0]["sets"] == records[1]["sets"]
    logged = [(tmp_path / out / "logs" / "metrics.csv").read_text() for out in ("whole", "lost")]
    assert logged[0] == logged[1]


def test_under_torchrun_all_processes_are_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lightning's "auto" is one process on a CPU: each would train apart."""
    from axnet.train import FitConfig, fitting

    asked: dict[str, object] = {}
    monkeypatch.setattr(fitting.L, "Trainer", lambda **options: asked.update(options))
    config = FitConfig(out=str(tmp_path), accelerator="cpu", logs=False, progress=False)
    for environment, expected in (({}, ("auto", 1)), ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}, (2, 3))):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fitting._trainer(config, [])
        assert (asked["devices"], asked["num_nodes"]) == expected
