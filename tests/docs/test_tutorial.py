"""The tutorial notebook runs from its first cell to its last, and its report is there."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(TUTORIAL.read_text(encoding="utf-8"))["cells"]


def readings(text):
    """Findings and calls of the classifier in the package: their probabilities round by the machine."""
    return re.findall(r"^(\w+) .*called: (.*)$", text, re.MULTILINE)


def test_from_film_to_report(cells, tmp_path, monkeypatch, capsys):
    """The cells in one namespace, as a kernel has it; figures are drawn, to no screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    space = {"__name__": "__main__"}
    said, kept = [], []
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            exec(compile("".join(cell["source"]), f"{TUTORIAL.name}, cell {number}", "exec", dont_inherit=True), space)
        said.append(capsys.readouterr().out)
        kept.append([line for output in cell["outputs"] for line in output.get("text", ())])
        saved = any(output["output_type"] in ("stream", "display_data") for output in cell["outputs"])
        assert saved == bool(said[-1]), "outputs are saved with the notebook: run it with jupyter nbconvert --execute"
    assert "cardiothoracic ratio" in said[1]
    assert readings(said[2]) == readings("".join(kept[2])), (
        "the reading is another classifier's: run the notebook again"
    )
    assert "mean AUC" in said[-1]
    report = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Sixty steps on phantoms" in report
    assert "Cardiomegaly" in report


def test_saved_outputs_hold_no_error(cells):
    for cell in cells:
        for output in cell.get("outputs", ()):
            assert output["output_type"] in ("stream", "display_data"), output
            assert output.get("name") != "stderr", output
