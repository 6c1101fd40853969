"""--config: a file's values are the defaults of a command's options, and a run's settings repeat it."""

from __future__ import annotations

import inspect
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest
import typer
import yaml
from typer.testing import CliRunner

from axnet.cli import fit as fit_command
from axnet.cli.config import CONFIG_NAME, Config, write_settings
from axnet.data.uncertainty import read_policy

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Loss(str, Enum):
    bce = "bce"
    focal = "focal"


app = typer.Typer()


@app.command()
def command(
    context: typer.Context,
    config_file: Config = None,
    out: Path = Path(),
    lr: float = 1e-3,
    loss: Loss = Loss.bce,
    compile: Annotated[bool, typer.Option("--compile")] = False,
    views: Optional[str] = None,  # noqa: UP045
    val_fraction: float = 0.1,
) -> None:
    write_settings(context, out)


def settings(folder: Path, *arguments: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    result = CliRunner().invoke(app, [*arguments, "--out", str(folder)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    found = yaml.safe_load((folder / CONFIG_NAME).read_text())
    assert isinstance(found, dict)
    return found


def test_flags_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("lr: 2e-3\nloss: focal\ncompile: true\nviews: [PA, AP]\nval-fraction: 0.25\n")
    found = settings(tmp_path / "run", "--config", str(file), "--lr", "0.5")
    assert found == {"lr": 0.5, "loss": "focal", "compile": True, "views": "PA,AP", "val_fraction": 0.25}
    again = settings(tmp_path / "again", "--config", str(tmp_path / "run" / CONFIG_NAME))
    assert again == found
    file.write_text("views:\n  Edema: ones\n  '*': [smooth, 0.6, 0.8]\n")  # a mapping, as of --uncertain
    assert read_policy(settings(tmp_path / "run", "--config", str(file))["views"]) == {
        "Edema": "ones",
        "*": ["smooth", 0.6, 0.8],
    }
    assert settings(tmp_path / "plain") == {"lr": 1e-3, "loss": "bce", "compile": False, "val_fraction": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 1", r"has 'lrr', expected options of axnet"),
        ("config: a.yaml", r"has 'config', expected options"),
        ("- lr", r"holds a list, expected one 'option: value' a line"),
        ("lr: [1", r"is no YAML"),
        ("compile: 3", r"has compile: 3, expected what --help says"),
        ("lr: true", r"has lr: True, expected what --help says"),
    ],
)
def test_what_is_no_setting(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        settings(tmp_path / "run", "--config", str(file))
    assert not (tmp_path / "run" / CONFIG_NAME).exists()


@pytest.mark.parametrize("text", ["lr: fast", "loss: square"])
def test_a_value_of_another_type_is_refused_as_behind_a_flag(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["--config", str(file), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"--{text.partition(':')[0]}" in result.output


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_files_name_options_of_fit(file: Path) -> None:
    assert set(yaml.safe_load(file.read_text())) <= set(inspect.signature(fit_command.fit).parameters)
