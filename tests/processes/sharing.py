"""What the processes of test_shares.py do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from axnet.cli import app


def commands(folder: Path, out: Path) -> list[list[Any]]:
    """Evaluate on files with a segmenter, predict on files and on packed films, and with calls."""
    weights, calibrated = ["--weights", folder / "model.safetensors"], ["--weights", folder / "calibrated.safetensors"]
    drawn = ["--segmenter", folder / "segmenter.safetensors"]
    files, packed = folder / "nih" / "images", folder / "packed"
    data = ["--data", "nih", "--root", folder / "nih", "--split", "all", "--workers", 0]
    return [
        ["evaluate", *data, *weights, *drawn, "--out", out / "report"],
        ["predict", files, *weights, *drawn, "--out", out / "files.csv"],
        ["predict", packed, *weights, *drawn, "--out", out / "packed.csv"],
        ["predict", packed, *calibrated, *drawn, "--out", out / "calls.csv"],
    ]


def run(arguments: list[Any]) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def shared(rank: int, folder: Path, ports: list[int]) -> list[str]:
    said = []
    for port, command in zip(ports, commands(folder, folder / "two"), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        said.append(run(command))
    return said
