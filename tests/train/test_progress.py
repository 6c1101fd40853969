from __future__ import annotations

import re
from pathlib import Path

import pytest

from axnet import progress
from axnet.models import Preprocessing
from axnet.progress import Progress
from axnet.progress.training import LogLines
from axnet.segment import PRESETS, Segmenter
from axnet.train import DataConfig, FitConfig, fit, open_part


def test_a_step_tells_its_beginning_and_end_with_count_and_rate() -> None:
    said: list[str] = []
    with Progress(said.append, bars=False).step("drawing masks", 40) as done:
        for count in (16, 32, 40):
            done(count)
    assert said[0] == "drawing masks: 40 films ..."
    assert re.fullmatch(r"drawing masks: 40 films in 0 s, \d+ films/s", said[1])
    assert len(said) == 2


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    with Progress(said.append).step("reading", 1000, "films") as done:
        for count in range(1, 1001):
            clock[0] += 0.125
            done(count)
    assert said == [
        "reading: 1000 films ...",
        "reading: 240 of 1000 films, 8 films/s",
        "reading: 480 of 1000 films, 8 films/s",
        "reading: 720 of 1000 films, 8 films/s",
        "reading: 960 of 1000 films, 8 films/s",
        "reading: 1000 films in 125 s, 8 films/s",
    ]


def test_a_step_that_fails_does_not_say_it_is_done() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="broken"), Progress(said.append).step("reading", 3):
        raise ValueError("broken")
    assert said == ["reading: 3 films ..."]


def test_reading_and_drawing_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    config = DataConfig(train_images=12, workers=0, cache=str(tmp_path))
    for _ in range(2):
        open_part(
            config,
            "train",
            Preprocessing(size=96),
            segmenter=Segmenter(PRESETS["tiny"]),
            progress=Progress(said.append, bars=False),
        )
    assert said[0] == "reading the train images: 12 films ..."
    assert said[2] == "drawing masks on the train images: 12 films ..."
    assert re.fullmatch(r"drawing masks on the train images: 12 films in \d+ s, [\d.]+ films/s", said[3])


def test_training_in_a_log_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_part(DataConfig(train_images=32, workers=0), "train", Preprocessing(size=32))
    options = {"backbone": "tiny", "reduction": 0.25}
    config = FitConfig(out=str(tmp_path), max_steps=4, batch_size=8, accelerator="cpu", options=options, logs=False)
    fit(config, data)
    assert capfd.readouterr() == ("", "")  # nothing yet to say in so short a run, and no bar's refreshes
    monkeypatch.setattr(progress, "EVERY", 0.0)
    result = fit(config, data)
    out, error = capfd.readouterr()
    assert error == ""
    assert [line.split(" steps/s")[0].rpartition(", ")[0] for line in out.splitlines()] == [
        f"epoch 1, step {step} of 4" for step in (1, 2, 3, 4)
    ]
    assert result.films == 32


def test_log_lines_keep_quiet_where_they_are_disabled(capfd: pytest.CaptureFixture[str]) -> None:
    import lightning as L
    import torch

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    lines = LogLines(0.0)
    lines.disable()
    loader = torch.utils.data.DataLoader(torch.ones(4, 1))
    trainer = L.Trainer(
        max_steps=2,
        callbacks=[lines],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    assert "step" not in capfd.readouterr().out
