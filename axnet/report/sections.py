"""The sections of a report, each as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from axnet.metrics import Interval, calibration_error
from axnet.metrics.checks import Floats
from axnet.metrics.evaluation import LEAST_POSITIVES
from axnet.report import plots
from axnet.report.pictures import example_figures, map_note
from axnet.report.results import Example, ModelResult
from axnet.report.text import counted, escape, number, percent, span, table

_MEASURES = ("average precision", "sensitivity", "Brier score", "calibration error")
_BARS = 6  # predicted findings listed per example, besides those that are present


def headline(models: Sequence[ModelResult], difference: Interval | None) -> str:
    """Mean AUC of each model and the difference of the first two, in numbers and in words."""
    first = models[0].evaluation
    level = percent(first.level)
    cards = "".join(
        f'<div style="border-color:{plots.colour(i)}"><span>{escape(m.name)}</span><b>{number(mean.value)}</b>'
        f'<span class="quiet">mean AUC, {level} interval {span(mean)}</span></div>'
        for i, (m, mean) in enumerate((m, m.evaluation.mean_auc) for m in models)
    )
    units = counted(first.samples, "image") + (f" of {counted(first.groups, 'patient')}" if first.groups else "")
    count = len(first.classes) - len(first.undefined)
    sentences = [f"Mean over {counted(count, 'finding')}, measured on {units}."]
    if first.undefined:
        listed = ", ".join(escape(name) for name in first.undefined)
        sentences.append(f"Without an AUC, and left out of the mean, because all its labels are equal: {listed}.")
    if first.few and not math.isnan(first.mean_auc_of_common.value):
        common = first.mean_auc_of_common
        sentences.append(
            f"Over the {len(first.classes) - len(first.few)} findings with at least {LEAST_POSITIVES} positives: "
            f"{number(common.value)} ({span(common)}). Fewer have {', '.join(escape(name) for name in first.few)}."
        )
    said = f"<p><strong>{compared(models, difference, level)}</strong></p>" if difference is not None else ""
    return f'<div class="models">{cards}</div>{said}<p class="quiet">{" ".join(sentences)}</p>'


def compared(models: Sequence[ModelResult], difference: Interval, level: str) -> str:
    """The difference of the first two models in one sentence that says what it does not show."""
    first, second = escape(models[0].name), escape(models[1].name)
    side = "above" if difference.value >= 0 else "below"
    said = f"{first} is {number(abs(difference.value))} {side} {second} in mean AUC"
    if math.isnan(difference.value):
        return f"The difference of {first} and {second} is undefined."
    if math.isnan(difference.low) or math.isnan(difference.high):
        return f"{said}; the data give no interval."
    said += f" (difference {number(difference.value, sign=True)}, {level} interval {span(difference, sign=True)})"
    if difference.low <= 0 <= difference.high:
        return f"{said}: the interval includes zero, so these images do not tell the two apart."
    return f"{said}: the interval excludes zero."


def key(models: Sequence[ModelResult]) -> str:
    """Names of the models in their colours."""
    names = (f'<span class="key" style="color:{plots.colour(i)}">{escape(m.name)}</span>' for i, m in enumerate(models))
    return f"<p>{''.join(names)}</p>"


def forest(models: Sequence[ModelResult]) -> str:
    """AUC by finding: numbers and intervals of all models, as a table with a common axis."""
    names = [m.name for m in models]
    by_class = list(zip(*(m.evaluation.classes for m in models), strict=True))
    means = [m.evaluation.mean_auc for m in models]
    first = f' style="color:{plots.colour(0)}"'
    axis = plots.AucAxis([c.auc for row in by_class for c in row] + means)

    def line(kind: str, title: str, detail: str, intervals: Sequence[Interval], reason: str) -> str:
        cells = "".join(
            f"<td{first if i == 0 else ''}><b>{number(v.value)}</b> <small>{span(v)}</small></td>"
            for i, v in enumerate(intervals)
        )
        if all(math.isnan(v.value) for v in intervals):
            plot, cells = (
                "",
                f'<td class="none" colspan="{len(names)}"><small>undefined: {reason}</small></td>',
            )
        else:
            plot = axis.strip(intervals, names)
        return (
            f'<tr class="{kind}"><th scope="row">{escape(title)} <small>{detail}</small></th>'
            f'<td class="plot">{plot}</td>{cells}</tr>'
        )

    rows = []
    for row in by_class:
        known = row[0].positives + row[0].negatives
        reason = "all labels are equal" if known else "no label is known"
        rows.append(line("class", row[0].name, f"{row[0].positives} of {known}", [c.auc for c in row], reason))
    rows.append(line("mean", "Mean", "", means, "no finding has an AUC"))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<h2>AUC by finding</h2>{key(models)}<table class="forest"><thead><tr><th scope="col">Finding</th>'
        f'<th class="plot">{axis.labels()}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def curves(models: Sequence[ModelResult], y_true: Floats, scores: Sequence[Floats]) -> str:
    """ROC and precision-recall curves of all models, small panels for each finding that has them."""
    rocs, precisions = [], []
    for k, classes in enumerate(zip(*(m.evaluation.classes for m in models), strict=True)):
        if classes[0].defined:
            columns = [s[:, k] for s in scores]
            rocs.append(plots.roc_panel(y_true[:, k], columns, classes[0].name, [c.auc.value for c in classes]))
            averages = [c.average_precision for c in classes]
            precisions.append(plots.precision_panel(y_true[:, k], columns, classes[0].name, averages))
    if not rocs:
        return ""
    parts = (
        ("ROC curves", "Sensitivity (upwards) against false positive rate; the number is the AUC.", rocs),
        (
            "Precision-recall curves",
            "Share of those called that have the finding (upwards) against sensitivity; the number is the average "
            "precision, the dashed line the frequency of the finding, which chance reaches.",
            precisions,
        ),
    )
    return "".join(
        f'<h2>{title}</h2>{key(models)}<p class="note">{note}</p><div class="rocs">{"".join(panels)}</div>'
        for title, note, panels in parts
    )


def reliability(model: ModelResult, y_true: Floats, probabilities: Floats) -> list[str]:
    """Reliability of all labels together, and of each finding with enough positives."""
    evaluation = model.evaluation
    together = calibration_error(y_true.ravel(), probabilities.ravel())
    panels = [plots.reliability_panel(y_true.ravel(), probabilities.ravel(), "all labels", together)]
    for k, one in enumerate(evaluation.classes):
        if one.name not in evaluation.few and not math.isnan(one.calibration_error):
            panels.append(plots.reliability_panel(y_true[:, k], probabilities[:, k], one.name, one.calibration_error))
    return panels


def further_measures(models: Sequence[ModelResult]) -> str:
    """Average precision, sensitivity and calibration by finding."""
    by_class = zip(*(m.evaluation.classes for m in models), strict=True)
    rows = [
        [
            classes[0].name,
            *(number(v) for c in classes for v in (c.average_precision, c.sensitivity, c.brier, c.calibration_error)),
        ]
        for classes in by_class
    ]
    head = ["Finding", *(_MEASURES * len(models))]
    above = [(m.name, len(_MEASURES)) for m in models] if len(models) > 1 else []
    note = (
        '<p class="note">Sensitivity at a specificity of at least 90 %. Average precision depends on how frequent the '
        "finding is. Brier score and calibration error (10 bins) are of the probabilities; 0 is best.</p>"
    )
    return f"<h2>Further measures</h2>{note}{table(head, rows, 'measures', above)}"


def hardest_errors(errors: Sequence[Example]) -> str:
    """A card per film that the model got most wrong, with its map of the finding."""
    if not errors:
        return ""
    note = (
        f'<p class="note">Of the findings with at least {LEAST_POSITIVES} positives: films that have one and were '
        "scored lowest, and films without it that were scored highest. The label may be wrong as well as the model.</p>"
    )
    cards = "".join(_card(example, f"error-{index}") for index, example in enumerate(errors))
    return f"<h2>Hardest errors</h2>{note}{cards}"


def example_cards(examples: Sequence[Example]) -> str:
    """A card per example: pictures, what is present, what was predicted."""
    if not examples:
        return ""
    note = map_note(" Bold in the list: present by the labels.")
    cards = "".join(_card(example, f"xray-{index}") for index, example in enumerate(examples))
    return f"<h2>Examples</h2>{note}{cards}"


def _card(example: Example, identifier: str) -> str:
    truth = ", ".join(escape(name) for name in example.truth) or "no finding"
    ranked = sorted(example.predicted, key=lambda name: -example.predicted[name])
    listed = [name for index, name in enumerate(ranked) if index < _BARS or name in example.truth]
    bars = "".join(
        f'<li class="{"present" if name in example.truth else "absent"}"><span>{escape(name)}</span>'
        f'<svg role="presentation"><rect width="{100 * example.predicted[name]:.1f}%" height="100%" '
        f'fill="{plots.COLOURS[0 if name in example.truth else 1]}"/></svg>'
        f"<span>{number(example.predicted[name], 2)}</span></li>"
        for name in listed
    )
    note = f'<span class="wrong">{escape(example.note)}</span>' if example.note else ""
    return (
        f'<article class="card"><header><h3>{escape(example.id)}</h3><span>Labels: {truth}</span>{note}</header>'
        f'{example_figures(example, identifier)}<ul class="bars">{bars}</ul></article>'
    )


def segmentation_table(segmentation: Mapping[str, Any] | None) -> str:
    """Dice by organ, or any measures by organ."""
    if not segmentation:
        return ""
    columns: list[str] = []
    for value in segmentation.values():
        names = list(value) if isinstance(value, Mapping) else ["Dice"]
        columns += [name for name in names if name not in columns]
    rows = [
        [organ, *(_measure(value if isinstance(value, Mapping) else {"Dice": value}, name) for name in columns)]
        for organ, value in segmentation.items()
    ]
    return f"<h2>Segmentation</h2>{table(['Organ', *columns], rows, 'plain')}"


def _measure(measures: Mapping[str, Any], name: str) -> str:
    value = measures.get(name, math.nan)
    if isinstance(value, Interval):
        return f"{number(value.value)} ({span(value)})"
    return number(float(value))
