"""Charts of a report as SVG: intervals on a common axis, ROC curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from axnet.metrics import Interval
from axnet.metrics.checks import Floats
from axnet.report.text import escape, number

COLOURS = ("#0b7285", "#868e96", "#c2255c", "#e67700", "#5f3dc4", "#2b8a3e")
_PITCH = 13  # pixels from one model's line to the next
_SIDE = 150  # of a ROC panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 14.0, 4.0, 146.0, 136.0


def colour(index: int) -> str:
    """Colour of the model of that number."""
    return COLOURS[index % len(COLOURS)]


class AucAxis:
    """A common horizontal axis for AUCs, from the lowest end of the intervals (0.5 at most) to 1."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        """Choose the range."""
        ends = [i.low for i in intervals if not math.isnan(i.low)] + [i.value for i in intervals if i.value == i.value]
        self.low = min([0.5, *(math.floor(end * 10) / 10 for end in ends)])
        self.ticks = [t / 10 for t in range(round(self.low * 10), 11) if self.low >= 0.3 or t % 2 == 0]

    def _x(self, value: float) -> str:
        return f"{100 * (value - self.low) / (1 - self.low):.2f}%"

    def labels(self) -> str:
        """The numbers of the axis."""
        anchors = ["middle"] * len(self.ticks)
        anchors[0], anchors[-1] = "start" if self.ticks[0] == self.low else "middle", "end"
        texts = "".join(
            f'<text x="{self._x(t)}" y="11" text-anchor="{a}">{t:.1f}</text>'
            for t, a in zip(self.ticks, anchors, strict=True)
        )
        return f'<svg class="strip axis" height="14" role="presentation">{texts}</svg>'

    def strip(self, intervals: Sequence[Interval], names: Sequence[str]) -> str:
        """The intervals of one finding, a line per model."""
        height = _PITCH * len(intervals) + 9
        parts = [
            f'<line class="{"chance" if t == 0.5 else "grid"}" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'
            for t, x in ((t, self._x(t)) for t in self.ticks)
        ]
        for index, interval in enumerate(intervals):
            y = 4.5 + _PITCH * (index + 0.5)
            if not math.isnan(interval.low) and not math.isnan(interval.high):
                ends = f'x1="{self._x(interval.low)}" x2="{self._x(interval.high)}"'
                parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="{colour(index)}" stroke-width="2"/>')
            if not math.isnan(interval.value):
                parts.append(f'<circle cx="{self._x(interval.value)}" cy="{y}" r="4" fill="{colour(index)}"/>')
        label = "; ".join(f"{name} {number(i.value)}" for name, i in zip(names, intervals, strict=True))
        return f'<svg class="strip" height="{height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def roc_panel(y: Floats, scores: Sequence[Floats], finding: str, aucs: Sequence[float]) -> str:
    """ROC curves of all models for one finding, with their AUCs; the first model is drawn last, on top."""
    known = ~np.isnan(y)
    chance = f'<line class="chance" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_TOP}"/>'
    curves = [
        f'<polyline points="{_points(y[known], s[known])}" stroke="{colour(index)}"/>' for index, s in enumerate(scores)
    ]
    labels = _labels(aucs, _BOTTOM - 7 - 14 * (len(aucs) - 1))
    return _panel(finding, f"ROC curves for {finding}", "1", chance + "".join(reversed(curves)), labels)


def _points(y: Floats, s: Floats) -> str:
    fpr, tpr, _ = roc_curve(y, s)
    return _line(fpr, tpr)


def precision_panel(y: Floats, scores: Sequence[Floats], finding: str, precisions: Sequence[float]) -> str:
    """Precision-recall curves of all models for one finding, with their average precision; chance is its frequency."""
    known = ~np.isnan(y)
    share = _BOTTOM - float(y[known].mean()) * (_BOTTOM - _TOP)
    chance = f'<line class="chance" x1="{_LEFT}" y1="{share:.1f}" x2="{_RIGHT}" y2="{share:.1f}"/>'
    curves = []
    for index, s in enumerate(scores):
        precision, recall, _ = precision_recall_curve(y[known], s[known])
        # the last point, a precision of 1 at no recall, is no threshold's
        curves.append(f'<polyline points="{_line(recall[:-1], precision[:-1])}" stroke="{colour(index)}"/>')
    return _panel(
        finding,
        f"Precision-recall curves for {finding}",
        "1",
        chance + "".join(reversed(curves)),
        _labels(precisions, _TOP + 14),
    )


def reliability_panel(y: Floats, probabilities: Floats, title: str, error: float, bins: int = 10) -> str:
    """Frequency against mean probability in bins of as many films each, with the expected calibration error.

    The axes end at the next tenth above what there is to see.
    """
    known = ~np.isnan(y)
    order = np.argsort(probabilities[known], kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    mean = np.array([probabilities[known][part].mean() for part in parts])
    frequency = np.array([y[known][part].mean() for part in parts])
    top = min(1.0, math.ceil(10 * max(mean.max(), frequency.max()) + 1e-9) / 10)
    points = _line(mean / top, frequency / top)
    dots = "".join(
        f'<circle cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="2.5" fill="{colour(0)}"/>'
        for point in points.split()
    )
    diagonal = f'<line class="chance" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_TOP}"/>'
    line = f'<polyline points="{points}" stroke="{colour(0)}"/>'
    return _panel(title, f"Reliability of {title}", f"{top:g}", diagonal + line + dots, _labels([error], _BOTTOM - 7))


def _panel(caption: str, described: str, end: str, drawing: str, labels: str) -> str:
    """A square with axes from 0 to `end`."""
    frame = (
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/>'
        f'<text x="{_LEFT}" y="147">0</text><text x="{_RIGHT}" y="147" text-anchor="end">{end}</text>'
    )
    return (
        f'<figure class="roc"><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {_SIDE} {_SIDE}" role="img" '
        f'aria-label="{escape(described)}">{frame}{drawing}{labels}</svg></figure>'
    )


def _labels(values: Sequence[float], first: float) -> str:
    """The numbers of the models, one below the other, the first at this height."""
    return "".join(
        f'<text class="auc" x="{_RIGHT - 5}" y="{first + 14 * index}" text-anchor="end" '
        f'style="fill:{colour(index)}">{number(value)}</text>'
        for index, value in enumerate(values)
    )


def _line(across: Floats, up: Floats) -> str:
    x = np.round((_LEFT + across * (_RIGHT - _LEFT)) * 4) / 4
    v = np.round((_BOTTOM - up * (_BOTTOM - _TOP)) * 4) / 4
    moved = np.concatenate([[True], (np.diff(x) != 0) | (np.diff(v) != 0)])  # a quarter of a pixel is the finest step
    return " ".join(f"{a:g},{b:g}" for a, b in zip(x[moved], v[moved], strict=True))
