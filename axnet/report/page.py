"""The page of a report, written in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from axnet.data.files import replacing
from axnet.metrics import Interval, LabelQuality, Localisation, Subgroup, auc_difference, checks
from axnet.metrics.evaluation import LEAST_POSITIVES
from axnet.metrics.localisation import PRIORNET, THRESHOLDS
from axnet.paths import StrPath
from axnet.report import sections
from axnet.report.operating import Thresholds, confusion
from axnet.report.rendering import html, render
from axnet.report.results import Example, ModelResult, check_models
from axnet.report.text import facts, percent


def write_report(
    path: StrPath,
    *,
    title: str,
    description: str,
    models: Sequence[ModelResult],
    y_true: ArrayLike,
    findings: Sequence[str],
    examples: Sequence[Example] = (),
    segmentation: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    difference: Interval | None = None,
    groups: ArrayLike | None = None,
    errors: Sequence[Example] = (),
    split_name: str = "",
    calibration: Thresholds | None = None,
    subgroups: Sequence[Subgroup] = (),
    localisation: Mapping[str, tuple[str, Mapping[str, Localisation]]] | None = None,
    label_quality: Sequence[LabelQuality] = (),
) -> Path:
    """Write an evaluation as one HTML file that needs no network and no script.

    path: the file; its folders are made, and it appears complete or not at all. title, description: plain text.
    models: one or more results, the one of interest first. y_true [N, K]: 0, 1, or NaN for unknown. findings: K names.
    examples: image cards. segmentation: organ to Dice (number or Interval), or organ to a mapping of measures.
    environment, run: names to values, nested or not. difference: mean AUC of models[0] minus that of models[1]; where
    it is not given and two models are, auc_difference computes it with groups [N] (patients). errors: image cards of
    the films that models[0] got most wrong. split_name: of the films. calibration: operating points of models[0].
    subgroups, label_quality: of models[0]. localisation: model to what its maps are and parts of the boxes.
    Returns the path. Raises ValueError where names, shapes or values do not belong together.
    """
    y = checks.labels("y_true", y_true, 2)
    check_models(models, y.shape, findings)
    scores = [checks.scores(f"scores of {model.name!r}", model.scores, y) for model in models]
    level = models[0].evaluation.level
    if difference is not None and len(models) < 2:
        raise ValueError("difference was given with one model, expected at least two models.")
    if difference is None and len(models) > 1:
        difference = auc_difference(y, scores[0], scores[1], level=level, groups=groups)
    first = models[0]
    probabilities = any(one.brier == one.brier for one in first.evaluation.classes)
    page = render(
        "report.html",
        title=title,
        description=description,
        split_name=split_name,
        first=first.name,
        findings=list(findings),
        least=LEAST_POSITIVES,
        level=percent(level),
        unit="patients" if first.evaluation.groups is not None else "images",
        headline=html(sections.headline(models, difference)),
        forest=html(sections.forest(models)),
        roc=html(sections.curves(models, y, scores)),
        reliability=[html(panel) for panel in sections.reliability(first, y, scores[0])] if probabilities else [],
        confusion=confusion(y, scores[0], findings, calibration) if probabilities else None,
        subgroups=subgroups,
        label_quality=label_quality,
        measures=html(sections.further_measures(models)),
        localisation=localisation or {},
        thresholds=THRESHOLDS,
        priornet=PRIORNET,
        errors=html(sections.hardest_errors(errors)),
        examples=html(sections.example_cards(examples)),
        segmentation=html(sections.segmentation_table(segmentation)),
        run=html(facts(run)) if run else "",
        environment=html(facts(environment)) if environment else "",
    )
    return write_page(Path(path), page)


def document(title: str, body: str) -> str:
    """A page of this package's style around its body, which is HTML; it may load nothing."""
    return render("document.html", title=title, body=html(body))


def write_page(path: Path, page: str) -> Path:
    """Write a page, complete or not at all; its folders are made. Returns the path."""
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
