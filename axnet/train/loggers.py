"""Where a run's numbers go: Lightning's loggers by name. Nothing leaves the machine unless its owner says so."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
# mlflow-skinny brings mlflow, but not the database that a run without a server is kept in
_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy")}
_PROJECT = "axnet"


def checked_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises ValueError for another name, ModuleNotFoundError that says what to install."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"logger is {name!r}, expected names out of {LOGGERS}.")
        for package in _PACKAGES.get(name, ()):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"logger '{name}' needs the package '{package}': pip install 'axnet[loggers]'."
                )
    return tuple(dict.fromkeys(names))


def loggers(names: Sequence[str], out: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """Loggers of a run in the folder out, all of which write below out/logs.

    wandb is offline unless WANDB_MODE says otherwise (`wandb sync` sends a run later), and mlflow writes
    a database, logs/mlflow.db, unless MLFLOW_TRACKING_URI names another place; both note the run's settings.
    """
    logs = out / "logs"
    made: list[Logger] = []
    for name in checked_loggers(names):
        if name == "csv":
            made.append(CSVLogger(out, name="", version="logs"))
        elif name == "tensorboard":
            made.append(TensorBoardLogger(out, name="", version="logs"))
        elif name == "wandb":
            logs.mkdir(parents=True, exist_ok=True)
            offline = os.environ.get("WANDB_MODE", "offline") != "online"
            made.append(WandbLogger(name=out.name, project=_PROJECT, save_dir=logs, offline=offline))
            made[-1].log_hyperparams(dict(settings))
        else:
            logs.mkdir(parents=True, exist_ok=True)
            place = os.environ.get("MLFLOW_TRACKING_URI")
            artifacts = None if place else (logs / "mlflow").resolve().as_uri()
            place = place or f"sqlite:///{(logs / 'mlflow.db').resolve()}"
            made.append(MLFlowLogger(_PROJECT, run_name=out.name, tracking_uri=place, artifact_location=artifacts))
            made[-1].log_hyperparams(dict(settings))
    return made
