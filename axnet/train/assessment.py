"""Score classifiers on one test set, and write what came out as a report and as numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axnet.data import ANATOMIES
from axnet.data.files import replacing
from axnet.data.image import StrPath
from axnet.metrics import Evaluation, Interval, auc_difference, evaluate
from axnet.models import Preprocessing
from axnet.progress import SILENT, Progress
from axnet.report import Example, ModelResult, environment, write_report
from axnet.train.data import Batches, XraySet
from axnet.train.inputs import to_input
from axnet.train.labels import checked_labels
from axnet.train.scoring import evaluating, predict

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.json"
_MAPS_SHOWN = 4


@dataclass(frozen=True)
class Assessment:
    """Results on a test set.

    evaluations and scores (float32 [N,K]) by the name of the model; difference: mean AUC of the first model minus the
    second, None for one model; report, metrics: the files written.
    """

    evaluations: dict[str, Evaluation]
    scores: dict[str, npt.NDArray[np.float32]]
    difference: Interval | None
    report: Path
    metrics: Path


def assess(
    models: Mapping[str, tuple[nn.Module, Preprocessing]],
    test: XraySet,
    out: StrPath,
    *,
    title: str,
    description: str,
    run: Mapping[str, Any],
    segmentation: Mapping[str, Any] | None = None,
    seed: int = 0,
    examples: int = 6,
    progress: Progress = SILENT,
) -> Assessment:
    """Evaluate one model, or two against each other, with 95 % intervals that take patients as units.

    models: name to (classifier, its preprocessing), the one of interest first. test: with masks, labels and findings
    in the order of the logits. out: folder for report.html and metrics.json. title, description, run (what was done,
    plain values), segmentation (organ to Dice): for the report. seed: of the bootstrap.
    examples: images to show. progress: told of the scoring of each model.
    Raises ValueError for a test set that does not fit the models.
    """
    test = replace(test, labels=checked_labels(test.labels, test.findings, test.ids, "test"))
    truth = test.labels.numpy()
    patients = np.array(test.patients)
    scores = {}
    for name, (model, preprocessing) in models.items():
        with progress.step(f"scoring by {name}", len(test)) as done:
            scores[name] = predict(model, test, preprocessing, progress=done)
    evaluations = {
        name: evaluate(truth, score, test.findings, groups=patients, seed=seed) for name, score in scores.items()
    }
    names = list(models)
    difference = None
    if len(names) > 1:
        difference = auc_difference(truth, scores[names[0]], scores[names[1]], groups=patients, seed=seed)
    where = environment()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "models": {name: evaluation.to_dict() for name, evaluation in evaluations.items()},
        "difference": None if difference is None else difference._asdict(),
        "segmentation": None if segmentation is None else dict(segmentation),
        "run": dict(run),
        "split_hash": test.split_hash,
        "environment": where,
    }
    metrics, report = folder / METRICS_NAME, folder / REPORT_NAME
    with replacing(metrics) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    model, preprocessing = models[names[0]]
    write_report(
        report,
        title=title,
        description=description,
        models=[ModelResult(name, evaluations[name], scores[name]) for name in names],
        y_true=truth,
        findings=test.findings,
        examples=_examples(model, preprocessing, test, scores[names[0]], examples),
        segmentation=segmentation,
        environment=where,
        run={**run, "split": test.split_hash},
        difference=difference,
        groups=patients,
    )
    return Assessment(evaluations, scores, difference, report, metrics)


def table(assessment: Assessment) -> str:
    """The AUCs as lines of text: one row per finding, one column per model, means and their difference below."""
    names = list(assessment.evaluations)
    head = f"{'':20}" + "".join(f"{name:>26}" for name in names)
    rows = [head]
    for columns in zip(*(assessment.evaluations[name].classes for name in names), strict=True):
        rows.append(f"{columns[0].name:20}" + "".join(f"{_cell(column.auc):>26}" for column in columns))
    means = (assessment.evaluations[name].mean_auc for name in names)
    rows.append(f"{'mean AUC':20}" + "".join(f"{_cell(mean):>26}" for mean in means))
    if assessment.difference is not None:
        rows.append(f"{'difference':20}{_cell(assessment.difference, sign='+'):>26}")
    return "\n".join(rows)


def _cell(interval: Interval, sign: str = "") -> str:
    if np.isnan(interval.value):
        return "-"
    return f"{interval.value:{sign}.3f} ({interval.low:{sign}.3f} to {interval.high:{sign}.3f})"


def _examples(
    model: nn.Module, preprocessing: Preprocessing, test: XraySet, score: npt.NDArray[np.float32], count: int
) -> list[Example]:
    """Images with most findings first, no two with the same ones, and the maps that the model pooled them by."""
    chosen = _varied(test.labels.numpy(), count)
    batch = Batches(test).__getitems__(chosen)
    ready = to_input(batch, preprocessing)
    device = next(model.parameters()).device
    with evaluating(model):
        maps = [stage.cpu() for stage in model(ready["image"].to(device), ready["mask"].to(device)).prob_maps]
    cards = []
    for row, index in enumerate(chosen):
        present = [k for k in range(len(test.findings)) if test.labels[index, k] == 1]
        likely = [k for k in np.argsort(-score[index]).tolist() if k not in present]
        shown = (present + likely)[:_MAPS_SHOWN]
        cards.append(
            Example(
                image=batch["image"][row, 0].numpy(),
                masks=dict(zip(ANATOMIES, batch["mask"][row].numpy(), strict=True)),
                prob_maps=_attended([stage[row] for stage in maps], [test.findings[k] for k in shown], shown),
                truth=[test.findings[k] for k in present],
                predicted={finding: float(score[index, k]) for k, finding in enumerate(test.findings)},
                id=test.ids[index],
            )
        )
    return cards


def _attended(stages: list[Tensor], names: list[str], columns: list[int]) -> dict[str, npt.NDArray[np.float32]]:
    """Where each finding was pooled from: its maps averaged over the stages, over their largest value."""
    if not stages:
        return {}
    fine = stages[0].shape[-2:]
    resized = [F.interpolate(stage[None].float(), fine, mode="bilinear", align_corners=False)[0] for stage in stages]
    mean = torch.stack([prob / prob.amax((1, 2), keepdim=True).clamp(min=1e-12) for prob in resized]).mean(0)
    if len(mean) == 1:
        return {"all findings": mean[0].numpy()}
    return {name: mean[column].numpy() for name, column in zip(names, columns, strict=True)}


def _varied(labels: npt.NDArray[np.float32], count: int) -> list[int]:
    order: Sequence[int] = np.argsort(-np.nansum(labels, 1), kind="stable").tolist()
    seen: set[bytes] = set()
    chosen = []
    for index in order:
        key = labels[index].tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(index)
    step = max(1, len(chosen) // max(1, count))
    return chosen[::step][:count]
