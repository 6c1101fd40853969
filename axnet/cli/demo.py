"""`axnet demo`: the whole method in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from axnet.cli.options import Data, OrganRoot, Quiet, Root, Seed, SegmenterFile, Workers, writable_folder
from axnet.data.sets import DEFAULT


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the numbers and the weights.")] = Path("axnet-demo"),
    data: Data = DEFAULT,
    root: Root = None,
    segmenter: SegmenterFile = None,
    organ_root: OrganRoot = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long to take; a few steps are timed first.")] = 4.0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=2, help="Steps of each network, for the same numbers on any machine; --minutes then counts not."
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 96,
    train_images: Annotated[int, typer.Option(min=32, help="Phantoms to train on.")] = 2500,
    test_images: Annotated[int, typer.Option(min=8, help="Phantoms to test on.")] = 2000,
    seed: Seed = 0,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Segment the anatomy, train AnatomyXNet and a plain DenseNet alike, compare them in one HTML report.

    On the built-in phantom nothing is downloaded. With --data nih, --root is the NIH download, and the masks come from
    --segmenter or from a segmenter trained on --organ-root.
    """
    import time

    started = time.perf_counter()
    writable_folder(out, "--out")
    from axnet.train import DataConfig, DemoConfig, run_demo, table

    config = DemoConfig(
        out=str(out),
        data=DataConfig(
            data=data,
            root=root,
            seed=seed,
            train_images=train_images,
            test_images=test_images,
            workers=workers,
        ),
        size=size,
        **({"minutes": minutes - (time.perf_counter() - started) / 60} if steps is None else {"steps": steps}),
        seed=seed,
        segmenter=None if segmenter is None else str(segmenter),
        organ_root=None if organ_root is None else str(organ_root),
        progress=not quiet,
    )
    result = run_demo(config, typer.echo)
    typer.echo(table(result.assessment))
    typer.echo(f"{time.perf_counter() - started:.0f} s; report: {result.assessment.report}")
