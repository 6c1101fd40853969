"""A run that goes on where it was cut off: the same settings and films, and the numbers logged so far."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger

from axnet.data.files import replacing
from axnet.train.augment import Augmentation
from axnet.train.data import XraySet

CONFIG_NAME = "config.json"
_MAY_CHANGE = frozenset(
    {"accelerator", "channels_last", "compile", "devices", "epochs", "logger", "logs", "max_steps", "num_nodes", "out"}
    | {"precise_bn", "progress", "resume", "select", "strategy", "workers"}
)
_MASKS_SEEN = 64
PROCESSES = "processes"


def record_of(
    settings: Mapping[str, Any], train: XraySet, validation: XraySet | None, processes: int
) -> dict[str, Any]:
    """What config.json says of a run: its settings, a digest of each set, and how many processes share its steps."""
    sets = {"train": _digest(train), "validation": None if validation is None else _digest(validation)}
    plain: dict[str, Any] = json.loads(json.dumps({**settings, "sets": sets, PROCESSES: processes}))
    return plain


def check_same_run(folder: Path, record: Mapping[str, Any], config_type: type) -> None:
    """Check that a run may go on in a folder: with the settings and sets that it began with.

    record: of the run as it is asked for; config_type: whose defaults stand for settings that an older axnet did not
    write. Another length, output or number of workers is no other run, nor is another number of processes, whose
    batches may be larger or smaller by as much.
    Raises ValueError that names the first difference, FileNotFoundError without config.json.
    """
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise FileNotFoundError(f"resume needs '{file}', which does not exist.")
    try:
        begun: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"resume needs '{file}', which is damaged: {error}.") from error
    for name, asked in record.items():
        if name in _MAY_CHANGE or name in ("sets", PROCESSES):
            continue
        before = begun.get(name, _default(config_type, name))
        if name == "augmentation" and isinstance(before, dict):
            before = {**asdict(Augmentation()), **before}  # what an older axnet did not have was off
        if name == "batch_size" and asked * record[PROCESSES] == before * begun.get(PROCESSES, 1):
            continue  # as many images a step, on another number of processes
        if before != asked:
            raise ValueError(
                f"{name} is {asked!r}, but the run in '{folder}' began with {before!r}: resume takes its settings, "
                "another run another folder."
            )
    for name, digest in record["sets"].items():
        if begun.get("sets", record["sets"])[name] != digest:
            raise ValueError(f"{name} holds other films, labels or masks than the run in '{folder}' began with.")


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write config.json in one step."""
    with replacing(folder / CONFIG_NAME) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")


def keep_rows(logger: CSVLogger, step: int) -> None:
    """Let a logger go on below the rows that are in its file, where Lightning would delete them.

    step: of the state that the run continues from; rows of later steps will be logged again.
    """
    file = Path(logger.log_dir) / "metrics.csv"
    aside = file.with_name("metrics.earlier.csv")
    if file.is_file():
        file.replace(aside)
    if not aside.is_file():
        return
    with aside.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if int(row["step"]) < step]
    logger.experiment.metrics = rows  # texts, as the file will hold them
    logger.save()
    aside.unlink()


def _digest(data: XraySet) -> str:
    digest = hashlib.sha256(json.dumps([data.ids, data.patients, data.findings]).encode())
    digest.update(data.labels.numpy().tobytes())
    seen = np.linspace(0, len(data) - 1, min(len(data), _MASKS_SEEN)).astype(np.int64)
    for part in (data.images, data.masks):
        if part is not None:
            digest.update(part[seen].numpy().tobytes())
    return digest.hexdigest()[:24]


def _default(config_type: type, name: str) -> Any:
    assert is_dataclass(config_type)
    for field in fields(config_type):
        if field.name == name:
            return None if field.default is MISSING else field.default
    return None
