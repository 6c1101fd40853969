"""Score classifiers on one test set, and write what came out as a report and as numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from axnet.data.adjudicated import MADE_OF, aligned
from axnet.data.files import replacing
from axnet.metrics import (
    Evaluation,
    Interval,
    LabelQuality,
    Subgroup,
    auc_difference,
    ensemble,
    evaluate,
    label_quality,
    subgroups,
)
from axnet.metrics.ensemble import Mean
from axnet.metrics.evaluation import as_json
from axnet.models import Calibration, Preprocessing
from axnet.paths import StrPath
from axnet.progress import SILENT, Progress
from axnet.report import ModelResult, environment, write_report
from axnet.train.data import XraySet
from axnet.train.examples import hardest, varied
from axnet.train.facts import Facts
from axnet.train.labels import checked_labels
from axnet.train.localising import Localised, localise
from axnet.train.scoring import predict_logits
from axnet.train.shares import ALONE, Share
from axnet.train.views import Views

if TYPE_CHECKING:
    import pandas as pd

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.json"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Assessment:
    """Results on a test set.

    evaluations and scores (float32 [N,K]) by the name of the model; difference: mean AUC of the first model minus the
    second, None for one model; subgroups: of the first model; localised: by the name of the model; label_quality: of
    the first model; logits: of the models themselves; report, metrics: the files written.
    """

    evaluations: dict[str, Evaluation]
    scores: dict[str, npt.NDArray[np.float32]]
    difference: Interval | None
    report: Path
    metrics: Path
    subgroups: tuple[Subgroup, ...] = ()
    localised: Mapping[str, Localised] = field(default_factory=dict)
    label_quality: Sequence[LabelQuality] = ()
    logits: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


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
    share: Share = ALONE,
    progress: Progress = SILENT,
    views: Views | None = None,
    mean: Mean | None = None,
    baseline: str | None = None,
    calibrations: Mapping[str, Calibration | None] | None = None,
    facts: Facts | None = None,
    adjudicated: pd.DataFrame | None = None,
) -> Assessment:
    """Evaluate one model, several, or their ensemble, with 95 % intervals that take patients as units.

    models: name to (classifier, its preprocessing), the one of interest first. test: with masks, labels and findings
    in the order of the logits. out: folder for report.html and metrics.json. title, description, run (what was done,
    plain values), segmentation (organ to Dice): for the report. seed: of the bootstrap.
    examples: images to show. share: of several processes that score together, of which the first calls this, the others
    axnet.train.scoring.predict_logits for each model in this order. progress: told of the scoring of each model.
    views: test-time augmentation of every model. mean: makes one model of all but the baseline, which then comes first
    (axnet.metrics.ensemble). baseline: the model that the ensemble is compared with; None for its first member.
    calibrations: of the models, by name: their probabilities and operating points; sigmoids without.
    facts: what is known of the films, for subgroups and localisation. adjudicated: labels of radiologists
    (axnet.data.adjudicated).
    Raises ValueError for a test set that does not fit the models.
    """
    test = replace(test, labels=checked_labels(test.labels, test.findings, test.ids, "test"))
    truth = test.labels.numpy()
    if mean is not None and ENSEMBLE in models:
        raise ValueError(f"models has one named '{ENSEMBLE}', expected another name beside mean {mean!r}.")
    if baseline is not None and baseline not in models:
        raise ValueError(f"baseline is '{baseline}', expected one of models {list(models)}.")
    patients = np.array(test.patients)
    read = {name: (calibrations or {}).get(name) for name in models}
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for name, (model, preprocessing) in models.items():
        with progress.step(f"scoring by {name}", len(test)) as done:
            logits[name] = predict_logits(model, test, preprocessing, views=views, share=share, progress=done)
    scores = {name: _probabilities(logits[name], read[name]) for name in models}
    if mean is not None:
        scores = _with_ensemble(scores, mean, baseline)
        read[ENSEMBLE] = None
    ranked = [ENSEMBLE] if mean == "ranks" else []  # whose scores are no probabilities
    evaluations = {
        name: evaluate(truth, score, test.findings, groups=patients, seed=seed, probabilities=name not in ranked)
        for name, score in scores.items()
    }
    names = list(scores)
    difference = None
    if len(names) > 1:
        difference = auc_difference(truth, scores[names[0]], scores[names[1]], groups=patients, seed=seed)
    facts = facts or Facts()
    parts = subgroups(
        *(truth, scores[names[0]], test.findings, facts.attributes),
        groups=patients,
        seed=seed,
        probabilities=names[0] not in ranked,
    )
    localised = {}
    for name, (model, preprocessing) in models.items():
        found = localise(model, preprocessing, test, facts.boxes)
        if found is not None:
            localised[name] = found
    quality: tuple[LabelQuality, ...] = ()
    if adjudicated is not None:
        quality = label_quality(
            truth,
            scores[names[0]],
            test.findings,
            aligned(adjudicated, test.ids),
            list(adjudicated.columns),
            MADE_OF,
            groups=patients,
        )
    where = environment()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "models": {name: evaluation.to_dict() for name, evaluation in evaluations.items()},
        "difference": as_json(difference),
        "segmentation": None if segmentation is None else dict(segmentation),
        "subgroups": [part.to_dict() for part in parts],
        "localisation": {name: found.to_dict() for name, found in localised.items()},
        "label_quality": [one.to_dict() for one in quality],
        "run": dict(run),
        "split_hash": test.split_hash,
        "environment": where,
    }
    metrics, report = folder / METRICS_NAME, folder / REPORT_NAME
    with replacing(metrics) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    shown = next(name for name in models if name != baseline or len(models) == 1)
    drawn = (*models[shown], test, scores[names[0]])
    write_report(
        report,
        title=title,
        description=description,
        models=[ModelResult(name, evaluations[name], scores[name]) for name in names],
        y_true=truth,
        findings=test.findings,
        examples=varied(*drawn, examples),
        errors=hardest(*drawn, examples),
        segmentation=segmentation,
        environment=where,
        run={**run, "split": test.split_hash},
        difference=difference,
        groups=patients,
        split_name=test.split_name,
        calibration=read[names[0]],
        subgroups=parts,
        localisation={name: (found.maps, found.parts()) for name, found in localised.items()},
        label_quality=quality,
    )
    return Assessment(evaluations, scores, difference, report, metrics, parts, localised, quality, logits)


def _probabilities(logits: npt.NDArray[np.float32], calibration: Calibration | None) -> npt.NDArray[np.float32]:
    import torch

    plain = torch.from_numpy(logits)
    found = plain.sigmoid() if calibration is None else calibration.probabilities(plain)
    return np.asarray(found.numpy(), dtype=np.float32)


def _with_ensemble(
    scores: Mapping[str, npt.NDArray[np.float32]], mean: Mean, baseline: str | None
) -> dict[str, npt.NDArray[np.float32]]:
    """The ensemble, the baseline, and then the members."""
    members = [name for name in scores if name != baseline]
    together = ensemble([scores[name] for name in members], mean).astype(np.float32)
    found = {ENSEMBLE: together}
    if baseline is not None:
        found[baseline] = scores[baseline]
    return found | {name: scores[name] for name in members}


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
