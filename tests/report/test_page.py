from __future__ import annotations

import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axnet.metrics import Interval, auc_difference, evaluate
from axnet.models import Calibration
from axnet.report import Example, ModelResult, environment, write_report
from axnet.report.operating import confusion
from axnet.report.rendering import render

VOID = {"meta", "image", "use", "line", "circle", "rect", "path", "polyline", "br", "img"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and what was left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def example(side: int = 64, name: str = "one.png") -> Example:
    rng = np.random.default_rng(side)
    heart = np.zeros((side, side), bool)
    heart[side // 2 : -4, side // 4 : side // 2] = True
    lungs = np.zeros((side, side), bool)
    lungs[4:-4, 8:-8] = True
    return Example(
        rng.integers(0, 256, (side, side)).astype(np.uint8),
        {"lungs": lungs, "heart": heart},
        {"Mass": rng.random((8, 8)), "Effusion": rng.random((8, 8))},
        ["Mass"],
        {"Mass": 0.81, "Effusion": 0.37, "Hernia": 0.02},
        name,
    )


def test_the_page_is_whole_and_needs_nothing_else(study: Any, tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "reports" / "report.html",
        **study.arguments,
        examples=[example()],
        segmentation={"heart": 0.93},
        environment=environment(),
        run={"epochs": 3},
    )
    assert path == tmp_path / "reports" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    targets = [v for _, a in page.tags for k, v in a.items() if k in ("href", "src", "xlink:href")]
    assert targets
    assert all(target is not None and target.startswith(("#", "data:image/")) for target in targets)
    assert "url(" not in path.read_text(encoding="utf-8")
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert {t[1:] for t in targets if t and t.startswith("#")} <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))
    assert "Not a medical device" in page.text


def test_the_headline_says_numbers_and_their_uncertainty(study: Any, tmp_path: Path) -> None:
    text = Page(write_report(tmp_path / "r.html", **study.arguments, groups=study.groups).read_text()).text
    for model in study.models:
        value, low, high = model.evaluation.mean_auc
        assert f"{value:.3f}mean AUC, 95\N{NO-BREAK SPACE}% interval {low:.3f} to {high:.3f}" in text
        effusion = model.evaluation.classes[0].auc
        assert f"{effusion.value:.3f} {effusion.low:.3f} to {effusion.high:.3f}" in text
    expected = auc_difference(study.y, study.models[0].scores, study.models[1].scores, groups=study.groups)
    ends = f"interval {expected.low:+.3f} to {expected.high:+.3f})".replace("-", "\N{MINUS SIGN}")
    assert f"(difference {expected.value:+.3f}".replace("-", "\N{MINUS SIGN}") in text
    assert ends in text
    assert "120 images of 60 patients" in text
    assert "left out of the mean, because all its labels are equal: Hernia." in text
    assert "undefined: all labels are equal" in text


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Interval(0.02, -0.01, 0.05), "0.020 above DenseNet-121 in mean AUC (difference +0.020"),
        (Interval(0.02, -0.01, 0.05), "−0.010 to +0.050): the interval includes zero"),  # noqa: RUF001
        (Interval(0.02, 0.01, 0.03), "the interval excludes zero"),
        (Interval(-0.02, -0.03, -0.01), "Anatomy-XNet is 0.020 below DenseNet-121"),
        (Interval(0.02, float("nan"), float("nan")), "the data give no interval"),
        (Interval(*[float("nan")] * 3), "is undefined"),
    ],
)
def test_the_difference_is_said_plainly(study: Any, tmp_path: Path, difference: Interval, said: str) -> None:
    text = Page(write_report(tmp_path / "r.html", **study.arguments, difference=difference).read_text()).text
    assert said in text
    assert ("includes zero" in text) == (difference.low <= 0 <= difference.high)


def test_all_text_is_escaped(study: Any, tmp_path: Path) -> None:
    evil = "<script>alert('&\")</script>"
    findings = ["Effusion", evil, "Hernia"]
    models = [
        ModelResult(evil, evaluate(study.y, m.scores, findings, resamples=50), m.scores) for m in study.models[:1]
    ]
    one = example()
    path = write_report(
        tmp_path / "r.html",
        title=evil,
        description=evil,
        models=models,
        y_true=study.y,
        findings=findings,
        examples=[Example(one.image, {evil: one.masks["heart"]}, {evil: np.ones((2, 2))}, [evil], {evil: 0.5}, evil)],
        segmentation={evil: {evil: 0.5}},
        environment={evil: evil},
        run={"a": {evil: evil}},
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.open == []
    assert page.text.count(evil) >= 15


def test_one_model_needs_no_difference_and_no_extras(study: Any, tmp_path: Path) -> None:
    arguments = study.arguments | {"models": study.models[:1]}
    text = Page(write_report(tmp_path / "r.html", **arguments).read_text()).text
    assert "interval includes" not in text
    assert not [title for title in ("Examples", "Segmentation", "Environment") if title in text]


def test_segmentation_takes_numbers_intervals_and_several_measures(study: Any, tmp_path: Path) -> None:
    segmentation = {"left lung": Interval(0.96, 0.95, 0.97), "heart": {"Dice": 0.93, "IoU": 0.871}}
    page = write_report(tmp_path / "r.html", **study.arguments, segmentation=segmentation).read_text()
    assert ">left lung</th><td>0.960 (0.950 to 0.970)</td><td>–</td>" in page  # noqa: RUF001
    assert ">heart</th><td>0.930</td><td>0.871</td>" in page


def test_nested_configuration_keeps_its_path(study: Any, tmp_path: Path) -> None:
    page = write_report(tmp_path / "r.html", **study.arguments, run={"model": {"a3": {"reduction": 0.5}}}).read_text()
    assert "<dt>model / a3 / reduction</dt><dd>0.5</dd>" in page


def test_a_report_of_large_images_stays_small(study: Any, tmp_path: Path) -> None:
    examples = [example(1024, f"{n}.png") for n in range(8)]
    assert write_report(tmp_path / "r.html", **study.arguments, examples=examples).stat().st_size < 3e6


def test_a_write_that_fails_leaves_the_old_report(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk is full"):
        write_report(path, **study.arguments)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_report_replaces_the_old_one_and_can_be_read_by_others(study: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    write_report(path, **study.arguments)
    assert "old" not in path.read_text()[:100]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_errors_name_the_argument(study: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    for changed, message in [
        ({"models": []}, "models is empty, expected at least one ModelResult"),
        ({"models": [study.models[0]] * 2}, "models are named .*, expected different names"),
        ({"findings": ["Effusion"]}, "findings has 1 names, expected 3, one per column of y_true"),
        ({"findings": ["Mass", "Effusion", "Hernia"]}, "evaluation of 'Anatomy-XNet' is of .*, expected the findings"),
        (
            {"y_true": study.y[:50]},
            r"scores of 'Anatomy-XNet' has shape \[120, 3\], expected that of y_true, \[50, 3\]",
        ),
        ({"models": study.models[:1], "difference": Interval(0, 0, 0)}, "difference was given with one model"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_report(path, **(study.arguments | changed))
    assert not path.exists()


def test_environment_says_what_ran() -> None:
    found = environment()
    assert {"axnet", "torch", "python", "CPU", "cores", "device", "date"} <= set(found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert found["cores"] == os.cpu_count()


def test_a_finding_whose_calls_are_not_counted_says_why() -> None:
    each = (0.5, None, 0.5)
    points = Calibration(1.0, each, each, each, each, "by hand", "none")
    labels = np.array([[0, 0, np.nan], [1, 1, np.nan]])
    counted = confusion(labels, np.full((2, 3), 0.7), ("Mass", "Hernia", "Edema"), points)
    assert (counted.rows[0]["tp"], counted.rows[0]["fp"]) == (1, 1)
    shown = render("operating.html", first="one", confusion=counted)
    assert re.findall(r'"row">(\w+)</th>\s*<td colspan="10" class="none">([^<]+)', shown) == [
        ("Hernia", "no operating point: too few films to choose one by"),
        ("Edema", "no film with a known label"),
    ]


def test_small_numbers_and_findings_that_no_film_tells(tmp_path: Path) -> None:
    scores = np.array([[0.7, 0.2]])
    model = ModelResult("m", evaluate([[1.0, np.nan]], scores, ["a", "b"], groups=["one"]), scores)
    arguments = {"title": "t", "description": "d", "models": [model], "y_true": [[1.0, np.nan]], "findings": ["a", "b"]}
    text = Page(write_report(tmp_path / "r.html", **arguments).read_text()).text  # type: ignore[arg-type]
    assert "measured on 1 image of 1 patient." in text
    assert "undefined: all labels are equal" in text
    assert "undefined: no label is known" in text
