"""`axnet evaluate`: measure classifiers on a test set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from axnet.cli.options import (
    Cache,
    Data,
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


def evaluate(
    weights: Annotated[Path, typer.Option(help="Classifier written by axnet fit.")],
    baseline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A second classifier to compare with, image by image."),
    ] = None,
    data: Data = DEFAULT,
    root: Root = None,
    split: SplitName = None,
    uncertain: Uncertain = None,
    views: Views = None,
    segmenter: SegmenterFile = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and metrics.json.")] = Path("axnet-report"),
    test_images: Annotated[int, typer.Option(min=2, help="Phantoms to test on (--data phantom).")] = 2000,
    cache: Cache = None,
    workers: Workers = 2,
    seed: Seed = 0,
) -> None:
    """Evaluate on a test split, or on phantoms: AUC with 95 % intervals, one HTML report.

    The anatomy masks come from --segmenter, from segmenter.safetensors beside the weights, or are the phantom's own.
    """
    from axnet.data.uncertainty import read_policy
    from axnet.models import AnatomyXNet, load_classifier
    from axnet.progress import Progress
    from axnet.train import DataConfig, assess, open_part, optional_segmenter, table, with_blank_masks

    writable_folder(out, "--out")
    model, info = load_classifier(weights)
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
        views=None if views is None else tuple(views.split(",")),
    )
    models = {weights.parent.name or weights.stem: (model, info.preprocessing)}
    if baseline is not None:
        other, other_info = load_classifier(baseline)
        if other_info.classes != info.classes:
            raise ValueError(f"baseline has classes {other_info.classes}, weights has {info.classes}.")
        models[baseline.parent.name or baseline.stem] = (other, other_info.preprocessing)
    guided = any(isinstance(one, AnatomyXNet) for one, _ in models.values())
    drawer = optional_segmenter(source, weights, segmenter, needed=guided)
    progress = Progress(typer.echo)
    test = open_part(source, "test", info.preprocessing, segmenter=drawer, progress=progress)
    if test.masks is None:
        test = with_blank_masks(test)
    assessment = assess(
        models,
        test,
        out,
        title=f"Evaluation on {source.dataset.title}",
        description=f"{len(test)} test images of {len(set(test.patients))} patients.",
        run={
            "weights": str(weights),
            "baseline": str(baseline or ""),
            "data": data,
            "split name": test.split_name,
            "seed": seed,
        },
        seed=seed,
        progress=progress,
    )
    typer.echo(table(assessment))
    typer.echo(str(assessment.report))
