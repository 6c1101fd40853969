"""The page of a report, written in one piece."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from axnet.metrics import Interval, auc_difference, checks
from axnet.report import sections
from axnet.report.results import Example, ModelResult, check_models
from axnet.report.style import STYLE
from axnet.report.text import escape, facts, percent

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: str | os.PathLike[str],
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
) -> Path:
    """Write an evaluation as one HTML file that needs no network and no script.

    path: the file; its folders are made, and it appears complete or not at all. title, description: plain text.
    models: one or more results, the one of interest first. y_true [N, K]: 0, 1, or NaN for unknown. findings: K names.
    examples: image cards. segmentation: organ to Dice (number or Interval), or organ to a mapping of measures.
    environment, run: names to values, nested or not. difference: mean AUC of models[0] minus that of models[1]; where
    it is not given and two models are, auc_difference computes it with groups [N] (patients).
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
    body = "".join(
        [
            f"<header><h1>{escape(title)}</h1><p>{escape(description)}</p></header>",
            sections.headline(models, difference),
            sections.forest(models),
            sections.roc_curves(models, y, scores),
            sections.further_measures(models),
            sections.example_cards(examples),
            sections.segmentation_table(segmentation),
            f"<h2>Run</h2>{facts(run)}" if run else "",
            f"<h2>Environment</h2>{facts(environment)}" if environment else "",
            _footer(level, models[0].evaluation.groups is not None),
        ]
    )
    return write_page(Path(path), document(title, body))


def document(title: str, body: str) -> str:
    """A page of this package's style around its body; it may load nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _footer(level: float, grouped: bool) -> str:
    unit = "patients" if grouped else "images"
    return (
        "<footer><p><strong>Not a medical device.</strong> For research; not for diagnosis, treatment or any other "
        f'clinical decision.</p><p class="note">Intervals are at {percent(level)}, with {unit} as the independent '
        "units: of one finding after DeLong on the logit scale, of means and differences by the percentile bootstrap."
        "</p></footer>"
    )


def write_page(path: Path, page: str) -> Path:
    """Write a page, complete or not at all; its folders are made. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
