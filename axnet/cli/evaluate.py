"""`axnet evaluate`: measure classifiers on a test set, and choose operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from axnet.cli.options import (
    Blank,
    Cache,
    Data,
    Device,
    Root,
    Seed,
    SegmenterFile,
    SplitName,
    Uncertain,
    Views,
    Workers,
    writable_folder,
)
from axnet.data.sets import DEFAULT

if TYPE_CHECKING:
    from torch import nn

    from axnet.models import ClassifierInfo, Preprocessing
    from axnet.train import Assessment, XraySet


class Mean(str, Enum):
    """What an ensemble averages."""

    logits = "logits"
    probabilities = "probabilities"
    ranks = "ranks"


class Temperature(str, Enum):
    """What a temperature is chosen for."""

    overall = "overall"
    finding = "per-finding"


def evaluate(
    context: typer.Context,
    classifiers: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(
            help="Classifiers written by axnet fit; several are evaluated as an ensemble, and each by itself. Without "
            "one, the classifier that comes with axnet.",
            metavar="[WEIGHTS...]",
        ),
    ] = None,
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The same as the first of WEIGHTS."),
    ] = None,
    baseline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Another classifier to compare with, image by image."),
    ] = None,
    mean: Annotated[Mean, typer.Option("--ensemble", help="What is averaged over several classifiers.")] = Mean.logits,
    tta: Annotated[
        bool, typer.Option("--tta", help="Test-time augmentation: films also shifted and zoomed, logits averaged.")
    ] = False,
    tta_shifts: Annotated[str, typer.Option(help="Shifts of --tta as shares of the side, comma-separated.")] = "0.03",
    tta_scales: Annotated[str, typer.Option(help="Scales of --tta, comma-separated.")] = "0.95,1.05",
    tta_flip: Annotated[
        bool, typer.Option("--tta-flip", help="Let --tta mirror films too, though the heart has a side.")
    ] = False,
    data: Data = DEFAULT,
    root: Root = None,
    split: SplitName = None,
    uncertain: Uncertain = None,
    blank: Blank = None,
    views: Views = None,
    segmenter: SegmenterFile = None,
    adjudicated: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Labels of radiologists, a CSV file by film, or google2019 (NIH, out of the package torchxrayvision).",
            metavar="FILE",
        ),
    ] = None,
    calibrate: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Choose temperature and thresholds on these films and store them in WEIGHTS: youden, sensitivity=S, "
            "specificity=S, or prevalence (as many are called as are), prevalence=P.",
            metavar="RULE",
        ),
    ] = None,
    temperature: Annotated[
        Temperature, typer.Option(help="Of --calibrate: one temperature, or one per finding.")
    ] = Temperature.overall,
    out: Annotated[Path, typer.Option(help="Folder for report.html and metrics.json.")] = Path("axnet-report"),
    test_images: Annotated[int, typer.Option(min=2, help="Phantoms to test on (--data phantom).")] = 2000,
    cache: Cache = None,
    workers: Workers = 2,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Evaluate on a test split, or on phantoms: AUC with 95 % intervals, one HTML report.

    Several WEIGHTS are one model, their ensemble. The report has subgroups (sex, age, view) and the localisation of
    boxes where the data set knows them. With --calibrate, RULE is applied to the films of --split, which must be kept
    for that: those that axnet fit held out are listed in OUT/validation.txt. Stored calibrations are used.

    The anatomy masks come from --segmenter, from segmenter.safetensors beside the weights, or are the phantom's own.
    Processes that torchrun starts share the films out, and give the numbers of one alone.
    """
    from axnet.data.adjudicated import read_adjudicated
    from axnet.data.labelled import some
    from axnet.data.uncertainty import read_policy
    from axnet.devices import device_of, in_channels_last
    from axnet.models import AnatomyXNet
    from axnet.progress import SILENT, Progress
    from axnet.train import DataConfig, Facts, assess, optional_segmenter, prepared, table, with_blank_masks
    from axnet.train import Views as Seen
    from axnet.train.calibrating import parse_rule
    from axnet.train.labels import hard
    from axnet.train.scoring import predict_logits
    from axnet.train.shares import shared_out

    with shared_out() as share:
        writable_folder(out, "--out")
        rule = None if calibrate is None else parse_rule(calibrate)
        files = _files(classifiers or [], weights)
        if calibrate is not None:
            _check_calibrate(files, split, real=data != DEFAULT or root is not None, tta=tta)
        augmentation = Seen(_numbers(tta_shifts, "--tta-shifts"), _numbers(tta_scales, "--tta-scales"), tta_flip)
        if not tta:
            _refuse(context, ("tta_shifts", "tta_scales", "tta_flip"), "--tta")
        if calibrate is None:
            _refuse(context, ("temperature",), "--calibrate")
        place = device_of(device)
        models, infos, compared = _models(files, baseline)
        for one, _ in models.values():
            in_channels_last(one.to(place))
        info = next(iter(infos.values()))
        source = DataConfig(
            data=data,
            root=root,
            seed=seed,
            test_images=test_images,
            findings=info.classes,
            workers=workers,
            cache=None if cache is None else str(cache),
            split=split,
            uncertain=None if uncertain is None else read_policy(uncertain),
            blank=blank,
            views=None if views is None else tuple(views.split(",")),
        )
        readings = None if adjudicated is None else read_adjudicated(adjudicated)
        guided = any(isinstance(one, AnatomyXNet) for one, _ in models.values())
        drawer = optional_segmenter(source, files[0], segmenter, needed=guided)
        if drawer is not None:
            drawer.to(place)
        progress = Progress(typer.echo) if share.rank == 0 else SILENT
        several = share.count > 1
        films = source.source("test", size=info.preprocessing.size, with_masks=drawer is None)
        test = prepared(
            source, films, "test", info.preprocessing, segmenter=drawer, on_demand=several, progress=progress
        )
        if test.masks is None:
            test = with_blank_masks(test)
        test = replace(test, labels=hard(test.labels))
        seen_by = augmentation if tta else None
        if share.rank:
            for each, preprocessing in models.values():
                predict_logits(each, test, preprocessing, views=seen_by, share=share)
            return
        facts = Facts.of(films)
        for line in facts.lacking:
            typer.echo(line)
        every = files if baseline is None else [*files, baseline]
        patients = source.patients_of(test.patients)
        known, met = _trained_on(every, test.ids), _patients_of(every) & patients
        for found, count, what in ((known, len(test), "films"), (sorted(met), len(patients), "patients")):
            if found:
                typer.echo(
                    f"{len(found)} of the {count} test {what} are among those that a classifier was trained or chosen "
                    f"on, by their names: {some(found)}"
                )
        assessment = assess(
            models,
            test,
            out,
            title=f"Evaluation on {source.dataset.title}",
            description=f"{len(test)} test images of {len(set(test.patients))} patients.",
            run={
                "weights": ", ".join(map(str, files)),
                "baseline": str(baseline or ""),
                "ensemble": mean.value if len(files) > 1 else "",
                "test-time augmentation": f"{len(augmentation)} views: {augmentation}" if tta else "",
                "data": source.named,
                "uncertain labels": str(source.uncertain or ""),
                "blank labels": blank or "",
                "views": views or "",
                "split name": test.split_name,
                "test films seen in training": len(known),
                "test patients seen in training": len(met),
                "seed": seed,
            },
            seed=seed,
            progress=progress,
            views=seen_by,
            share=share,
            mean=mean.value if len(files) > 1 else None,
            baseline=compared,
            calibrations={name: one.calibration for name, one in infos.items()},
            facts=facts,
            adjudicated=readings,
        )
        typer.echo(table(assessment))
        typer.echo(_few(assessment))
        if readings is not None and not assessment.label_quality:
            typer.echo(
                f"--adjudicated: nothing is compared, since none of {tuple(readings.columns)} is a finding that this "
                "set and the classifier label"
            )
        typer.echo(str(assessment.report))
        if rule is not None:
            typer.echo(_calibrate(files[0], rule, temperature.value, assessment, test))


def _few(assessment: Assessment) -> str:
    """What the mean is over the findings that occur often enough, and which do not."""
    from axnet.metrics.evaluation import LEAST_POSITIVES

    first = next(iter(assessment.evaluations.values()))
    if not first.few:
        return f"every finding has at least {LEAST_POSITIVES} positives"
    value, low, high = first.mean_auc_of_common
    few = f"fewer than {LEAST_POSITIVES} positives, so that the AUC says little: {', '.join(first.few)}"
    if len(first.few) == len(first.classes):
        return few
    return f"mean AUC of the other {len(first.classes) - len(first.few)}: {value:.3f} ({low:.3f} to {high:.3f}); {few}"


def _files(classifiers: list[Path], weights: Path | None) -> list[Path]:
    from axnet.predictor import shipped

    files = [*([] if weights is None else [weights]), *classifiers]
    resolved = [file.resolve() for file in files]
    if len(set(resolved)) < len(files):
        twice = next(file for file, one in zip(files, resolved, strict=True) if resolved.count(one) > 1)
        raise ValueError(f"weights names '{twice}' twice, expected different files.")
    return files or [shipped()]


def _models(
    files: list[Path], baseline: Path | None
) -> tuple[dict[str, tuple[nn.Module, Preprocessing]], dict[str, ClassifierInfo], str | None]:
    """The classifiers with their preprocessing and what their checkpoints say, by name; the baseline's name."""
    from axnet.models import load_classifier

    models: dict[str, tuple[nn.Module, Preprocessing]] = {}
    infos: dict[str, ClassifierInfo] = {}
    every = [*files, *([] if baseline is None else [baseline])]
    for file, name in zip(every, _names(every), strict=True):
        model, info = load_classifier(file)
        first = next(iter(infos.values()), info)
        if info.classes != first.classes:
            raise ValueError(f"'{file}' has classes {info.classes}, '{every[0]}' has {first.classes}.")
        for what in ("size", "percentiles"):  # of the films, which are read once for all
            own, wanted = getattr(info.preprocessing, what), getattr(first.preprocessing, what)
            if own != wanted:
                raise ValueError(f"'{file}' takes films of {what} {own}, '{every[0]}' of {wanted}, expected the same.")
        models[name], infos[name] = (model, info.preprocessing), info
    return models, infos, None if baseline is None else list(models)[-1]


def _names(files: list[Path]) -> list[str]:
    """A name per file: that of the run's folder, the file's own, or as much of the path as tells them apart."""
    from axnet.models.storage import is_shipped
    from axnet.train.assessment import ENSEMBLE

    def folder(file: Path) -> str:
        return file.stem if is_shipped(file) else file.parent.name or file.stem

    found: list[str] = []
    for name in (folder, lambda f: f.stem, lambda f: f"{f.parent.name}/{f.stem}", str):
        found = [name(file) for file in files]
        if len({*found, ENSEMBLE}) > len(found):
            break
    return found


def _trained_on(files: Sequence[Path], films: Sequence[str]) -> list[str]:
    """Which films are among those of the runs that left these weights, where their lists are beside them."""
    from axnet.cli.fit import FILMS_NAME
    from axnet.data.joined import among

    return sorted({film for seen in _lists(files, FILMS_NAME) for film in among(films, seen)})


def _patients_of(files: Sequence[Path]) -> set[str]:
    """Patients of the runs that left these weights."""
    from axnet.cli.fit import PATIENTS_NAME

    return {patient for seen in _lists(files, PATIENTS_NAME) for patient in seen}


def _lists(files: Sequence[Path], name: str) -> list[list[str]]:
    listed = {file.parent / name for file in files}
    return [one.read_text(encoding="utf-8").splitlines() for one in listed if one.is_file()]


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{option} is '{text}', expected numbers with commas between them.") from error


def _refuse(context: typer.Context, names: Sequence[str], needed: str) -> None:
    """Raise ValueError for options that were given but do nothing without another one."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise ValueError(f"--{name.replace('_', '-')} was given without {needed}, expected both.")


def _check_calibrate(files: list[Path], split: str | None, *, real: bool, tta: bool) -> None:
    from axnet.models.storage import is_shipped

    if len(files) > 1:
        raise ValueError(f"--calibrate was given with {len(files)} classifiers, expected one, in which to store it.")
    if is_shipped(files[0]):
        raise ValueError("--calibrate would change the classifier that comes with axnet, expected a copy of its file.")
    if tta:
        raise ValueError("--calibrate was given with --tta, expected it without: axnet predict sees a film once.")
    if split is None and real:
        raise ValueError(
            "--calibrate needs --split, with films on which nothing is reported (OUT/validation.txt of axnet fit)."
        )


def _calibrate(
    file: Path, rule: tuple[Any, float | None], temperature: Any, assessment: Assessment, test: XraySet
) -> str:
    """Store the calibration, and say what it does."""
    from axnet.models import store_calibration
    from axnet.train import calibrate

    chosen = calibrate(
        test.labels.numpy(),
        next(iter(assessment.logits.values())),
        *rule,
        temperature=temperature,
        films=f"the {len(test)} films of {test.split_name} ({test.split_hash[:12]})",
    )
    store_calibration(file, chosen)
    shown = chosen.temperature if isinstance(chosen.temperature, tuple) else (chosen.temperature,)
    lines = [f"temperature {', '.join(f'{value:.3f}' for value in shown)}; {chosen.rule}; stored in {file}"]
    lines.append(f"{'':20}{'threshold':>10}{'sensitivity':>13}{'specificity':>13}{'called of 1,000':>17}")
    columns = zip(
        test.findings, chosen.thresholds, chosen.sensitivity, chosen.specificity, chosen.positives_per_1000, strict=True
    )
    for finding, *values in columns:
        if values[0] is None:
            lines.append(f"{finding:20}{'-':>10}  no call: too few films")
        else:
            threshold, sensitivity, specificity, called = values
            lines.append(f"{finding:20}{threshold:10.4f}{sensitivity:13.2f}{specificity:13.2f}{called:17.0f}")
    return "\n".join(lines)
